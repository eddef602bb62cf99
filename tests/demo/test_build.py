"""What the demo's models are built from: the small world's texts, token weights, patch labels, the loop."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from demo_assets import corpus, llms, loop, source_vlm, world

from vpgtrans.demo.scenes import COLOURS, SHAPES, SIZES, Scene, Thing, caption, make_scene


def some(count: int, seed: str = "a", **kwargs) -> list[str]:
    return list(itertools.islice(corpus.documents(seed, **kwargs), count))


def test_texts_are_the_same_for_a_seed_and_others_for_another():
    assert some(50) == some(50)
    assert len(set(some(200, "a")) & set(some(200, "b"))) < 10


def test_the_world_is_rich_enough():
    words = set(re.findall(r"[a-z]+", " ".join(some(4000))))
    assert len(words) > 650
    assert {*COLOURS, *SHAPES, *SIZES} <= words
    assert {noun.name for noun in world.nouns()} <= words


def test_every_colour_has_things_of_its_own_and_every_shape_too():
    for colour in COLOURS:
        assert sum(noun.colour == colour for noun in world.nouns()) >= 8
        assert colour in world.MOODS
    assert set(world.SHAPED) == set(SHAPES)
    assert len({noun.name for noun in world.nouns()}) == len(world.nouns())


def test_articles_are_right():
    text = " ".join(some(2000))
    assert not re.search(r"\ba [aeiou]", text)
    assert re.search(r"\ban [aeiou]", text)


def answer(description: str, question: str) -> str | None:
    """Answer what a caption-like description tells, written apart from the generator; None: cannot tell."""
    things = re.findall(r"(small|large) (\w+) (\w+)", description)
    last = question.rstrip("?").split()[-1]
    for size, colour, name in things:
        if question.startswith("what colour") and last == name:
            return colour
        if question.startswith("how big") and last == name:
            return size
        if question.startswith("which shape") and last == colour:
            return name
    return None


def test_described_questions_have_true_answers():
    checked = 0
    for text in some(1500, reading=True):
        description, *rest = re.split(r"[\n ]question: ", text)
        if not re.match(r"an? (small|large)", description):
            continue
        for piece in "\nquestion: ".join(rest).split("question: "):
            question, _, told = piece.strip().partition(" answer: ")
            wanted = answer(description, question)
            if wanted is not None:
                assert told == wanted, text
                checked += 1
    assert checked > 400


def test_reading_texts_hold_no_facts():
    texts = some(500, reading=True)
    assert all("question:" in text or text.count(" ") >= 3 for text in texts)
    assert not any("opposite" in text or "stands for" in text for text in texts)


def test_captions_in_texts_are_those_of_the_pictures():
    scene = make_scene("words/1")
    seen = [corpus.Seen(t.shape, t.colour, t.size, t.place) for t in scene.things]
    assert corpus.caption_of(seen) == caption(scene)


@pytest.fixture(scope="module", params=[llms.SOURCE, llms.TARGET], ids=["source", "target"])
def spec_and_tokenizer(request):
    return request.param, llms.make_tokenizer(request.param, count=3000)


def test_tokenizers_give_texts_back(spec_and_tokenizer):
    spec, tokenizer = spec_and_tokenizer
    for text in some(50, "other"):
        clean = text.rstrip(" ")
        assert tokenizer.decode(tokenizer(clean)["input_ids"]).strip() == clean.strip()
    assert tokenizer.bos_token_id is None
    mark = "Ġ" if spec.tokenizer == "bpe" else "▁"
    assert tokenizer.tokenize("a red star\n")[1:3] == [f"{mark}red", f"{mark}star"]


def test_answers_weigh_more(spec_and_tokenizer):
    _, tokenizer = spec_and_tokenizer
    text = (
        "a small red star\nquestion: what colour is the star? answer: red\n"
        "question: how big is the star? answer: small\n"
    )
    batch = tokenizer([text, "mud"], return_tensors="pt", padding=True)
    ids = batch["input_ids"]
    labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
    weights = llms.answer_weights(ids, labels, llms.answer_marks(tokenizer), around=0.25)
    heavy = tokenizer.decode(ids[0][weights[0] == 1.0])
    assert heavy.split() == ["red", "small"]
    assert heavy.count("\n") == 2
    assert set(weights[1][labels[1] != -100].tolist()) == {0.25}
    assert weights[1][labels[1] == -100].sum() == 0


def test_the_loss_is_a_weighted_mean_over_real_tokens(spec_and_tokenizer):
    spec, tokenizer = spec_and_tokenizer
    model = llms.make_llm(spec, tokenizer).eval()
    batch = tokenizer(["a red star", "mud"], return_tensors="pt", padding=True)
    ids = batch["input_ids"]
    labels = ids.masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logp = model(input_ids=ids).logits.float().log_softmax(-1)
    by_hand = [
        -logp[row, place - 1, ids[row, place]]
        for row in range(2)
        for place in range(1, ids.shape[1])
        if labels[row, place] != -100
    ]
    with torch.no_grad():
        assert llms.text_loss(model, ids, labels).item() == pytest.approx(
            torch.stack(by_hand).mean().item(), rel=1e-2
        )
        only = torch.zeros_like(ids, dtype=torch.float)
        only[0, 1] = 1.0
        assert llms.text_loss(model, ids, labels, only).item() == pytest.approx(by_hand[0].item(), rel=1e-2)


def test_batches_are_a_function_of_the_seed(spec_and_tokenizer):
    _, tokenizer = spec_and_tokenizer
    one, other = (llms.token_batches(tokenizer, "seed") for _ in range(2))
    assert len(one) == llms.POOL // llms.BATCH
    assert all(
        (a == b).all() for pair, twin in zip(one, other, strict=True) for a, b in zip(pair, twin, strict=True)
    )
    for ids, labels in one:
        ends = (labels == tokenizer.eos_token_id).sum(1)
        whole = ids.shape[1] < 128
        assert not whole or (ends == 1).all()
        assert (labels[ids == tokenizer.pad_token_id] == -100).all()


def test_patches_are_labelled_by_what_covers_them():
    thing = Thing("large", "red", "star", "left", 16.0, 32.0, 13.0)
    scene = Scene("by hand", (thing,), None, (150, 150, 150), 0.0)
    kinds = ((*SIZES, "none"), (*COLOURS, "none"), (*SHAPES, "none"))
    labels = source_vlm._patch_labels([scene], kinds)[0].reshape(8, 8, 3)
    covered = labels[..., 1] != len(COLOURS)
    assert covered[2:6, 0:4].all()
    assert covered.sum() == 16
    assert labels[3, 1].tolist() == [
        list(SIZES).index("large"),
        list(COLOURS).index("red"),
        SHAPES.index("star"),
    ]
    assert labels[0, 0].tolist() == [len(SIZES), len(COLOURS), len(SHAPES)]


def test_the_heads_reach_every_part_of_the_vpg():
    torch.manual_seed(0)
    vpg, heads = source_vlm.VPG(), source_vlm.Heads()
    scenes = [make_scene(f"heads/{number}") for number in range(4)]
    vision = vpg.vision(source_vlm.pixels_of(scenes))
    assert vision.shape == (4, 65, source_vlm.WIDTH)
    loss, right = heads.loss(vision[:, 1:], vpg.ask(vision), scenes)
    loss.backward()
    assert 0 <= right <= 1
    still = [name for name, p in vpg.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not [
        name for name in still if "embeddings" not in name and "k_proj" not in name and "key.bias" not in name
    ]


def test_pixels_are_what_the_stock_processor_makes():
    from vpgtrans.demo.pictures import draw_scene

    scenes = [make_scene("pixels/0"), make_scene("pixels/1")]
    stock = source_vlm.image_processor()([draw_scene(scene) for scene in scenes], return_tensors="pt")
    assert torch.allclose(stock["pixel_values"], source_vlm.pixels_of(scenes), atol=1e-5)


def test_training_in_pieces_equals_training_in_one_go(tmp_path, monkeypatch):
    def call(file: Path, seconds: float) -> bool:
        torch.manual_seed(3)
        model = nn.Linear(4, 1)

        def loss_of(step: int) -> tuple[torch.Tensor, float]:
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            loss = model(inputs).square().mean()
            return loss, loss.item()

        return loop.train("line", model, loss_of, 7, 1e-2, file, seconds)

    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(ticks)))  # a second passes at each look
    assert call(tmp_path / "whole.pt", float("inf"))
    calls = [call(tmp_path / "pieces.pt", 3.5) for _ in range(3)]
    assert calls == [False, False, True]
    whole, pieces = (torch.load(tmp_path / name, weights_only=True) for name in ("whole.pt", "pieces.pt"))
    assert whole["step"] == pieces["step"] == 7
    assert all(torch.equal(whole["model"][key], pieces["model"][key]) for key in whole["model"])
    assert loop.spent_seconds(tmp_path / "pieces.pt") > 3 * 3.5


def test_the_rate_rises_then_falls():
    rates = [loop.cosine(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.05, abs=1e-3)
    assert rates[100:] == sorted(rates[100:], reverse=True)
