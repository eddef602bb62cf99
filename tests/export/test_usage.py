"""The card's call of the stock processor gives the ids that the model was trained with."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from tests.export.ports import TEMPLATE, Port, make_port, target_folder
from tests.tiny import tiny_tokenizer
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import CheckpointError
from vpgtrans.export.hf import export_hf
from vpgtrans.export.processor import save_processor
from vpgtrans.export.usage import explicit_ids, find_usage, prompt_text, template_pair
from vpgtrans.recipe import Prompt
from vpgtrans.vlm.forward import Trainee

Pairs = list[tuple[Record, TextPair]]
TEXTS = [TextPair(prompt, "red") for prompt in ("what colour is the star?", "a", "  is it <b>left</b>? ")]


def make_encoder(kind: Any, layout: str, template: str, bos: bool = True, t5: bool = False) -> PromptEncoder:
    tokenizer = tiny_tokenizer(kind, bos=bos)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    token_id = tokenizer.convert_tokens_to_ids("<image>")
    return PromptEncoder(
        tokenizer, token_id, 4, layout, Prompt(template=template, answer_end="", max_text_tokens=64), t5
    )


@pytest.mark.parametrize("template", ["{answer}", TEMPLATE, "{prompt}\n{answer}"])
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("layout", ["bos-image-text", "image-bos-text", "image-text"])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_a_plain_call_gives_the_runs_ids(
    kind: str, layout: str, bos: bool, template: str, llama: Port, tmp_path: Path
) -> None:
    """Whether or not the tokenizer adds BOS, and whatever a word after a special token becomes."""
    encoder = make_encoder(kind, layout, template, bos)
    usage = find_usage(encoder, TEXTS)
    assert not usage.explicit
    save_processor(tmp_path, encoder.tokenizer, llama.ported.image_processor, encoder.image_token_id, usage)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "blip-2"}))
    processor = AutoProcessor.from_pretrained(tmp_path)
    image = torch.zeros(3, 16, 16, dtype=torch.uint8)
    for text in TEXTS:
        call = processor(
            images=image,
            text=usage.text(prompt_text(encoder, text)),
            add_special_tokens=usage.add_special_tokens,
            return_tensors="pt",
        )
        assert call["input_ids"][0].tolist() == encoder.encode_prompt(text)


def test_the_stock_order_needs_no_spelling(llama: Port) -> None:
    usage = find_usage(llama.encoder("image-bos-text"), TEXTS)
    assert (usage.num_query_tokens, usage.prefix, usage.add_special_tokens) == (4, "", True)


def test_bos_in_front_spells_the_places(llama: Port, gemma: Port) -> None:
    usage = find_usage(llama.encoder("bos-image-text"), TEXTS)
    assert (usage.num_query_tokens, usage.prefix) == (None, "<image>" * 4)
    # the SentencePiece-like tokenizer marks a word's leading space, which a special token would swallow
    assert find_usage(gemma.encoder("bos-image-text"), TEXTS).prefix == "<image>" * 4 + " "


def test_an_empty_prompt_alone_does_not_decide() -> None:
    """Without a prompt several calls agree; the made-up one finds the call that is right for all."""
    encoder = make_encoder("unigram", "bos-image-text", "{prompt}{answer}")
    usage = find_usage(encoder, [])
    ids = [usage.ids(encoder.tokenizer, encoder, prompt_text(encoder, text)) for text in TEXTS]
    assert ids == [encoder.encode_prompt(text) for text in TEXTS]
    places = "<image>" * 4
    wrong = encoder.tokenizer(places + prompt_text(encoder, TEXTS[0]))["input_ids"]
    assert wrong != encoder.encode_prompt(TEXTS[0])


def test_ids_are_spelled_where_no_call_gives_them() -> None:
    """This tokenizer ends no text by itself, the encoder of an encoder-decoder LLM wants an end."""
    encoder = make_encoder("bpe", "image-text", TEMPLATE, t5=True)
    usage = find_usage(encoder, TEXTS)
    assert usage.explicit
    for text in TEXTS:
        assert explicit_ids(encoder, prompt_text(encoder, text)) == encoder.encode_prompt(text)


def test_prompts_that_training_shortened_do_not_count() -> None:
    tokenizer = tiny_tokenizer("bpe", bos=False)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    section = Prompt(template=TEMPLATE, answer_end="", max_text_tokens=40)
    encoder = PromptEncoder(
        tokenizer, tokenizer.convert_tokens_to_ids("<image>"), 4, "image-text", section, True
    )
    long = TextPair("what colour is the square " * 20, "red")
    assert find_usage(encoder, [long]) == find_usage(encoder, [])


@pytest.mark.parametrize("name", ["gemma", "llama", "t5"])
def test_the_lines_in_the_card_run_and_print_the_runs_answer(
    name: str, pairs: Pairs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    port: Port = request.getfixturevalue(name)
    layout = {"gemma": "bos-image-text", "llama": "image-bos-text", "t5": "image-text"}[name]
    encoder = port.encoder(layout)
    report = export_hf(port.ported, port.source, port.target, encoder, tmp_path / "model", max_new_tokens=5)
    card = (tmp_path / "model/README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert code.strip().splitlines() == list(report.lines)
    record = pairs[2][0]
    record.image.open().save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "card", "exec"), {})
    assert printed.getvalue().rstrip("\n") == own_answer(port, encoder, tmp_path / "photo.jpg", 5)


def own_answer(port: Port, encoder: PromptEncoder, image: Path, length: int) -> str:
    from vpgtrans.data.batches import Collator
    from vpgtrans.data.records import ImageFile

    record = Record("photo", ImageFile(image), (template_pair(),))
    batch = Collator(encoder, port.ported.image_processor)([(record, template_pair())], for_generation=True)
    ends = [*encoder.stop_ids, 2]
    ids = Trainee(port.ported).generate(batch, length, ends)[0]
    return str(port.ported.tokenizer.decode(ids, skip_special_tokens=True)).strip()


def test_batches_of_different_lengths_answer_as_single_prompts_do(
    root: Path, pairs: Pairs, tmp_path: Path
) -> None:
    """The saved tokenizer pads on the left, with a pad token, so that a user's batch is right."""
    port = make_port(root, target_folder(root, "opt"))
    encoder = port.encoder("image-bos-text")
    export_hf(port.ported, port.source, port.target, encoder, tmp_path / "model")
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    texts = [prompt_text(encoder, text) for _, text in pairs[:3]]
    images = [record.image.open() for record, _ in pairs[:3]]
    batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    answers = model.generate(**batch, max_new_tokens=5)[:, batch["input_ids"].shape[1] :]
    for row, image, text in zip(answers, images, texts, strict=True):
        single = processor(images=image, text=text, return_tensors="pt")
        alone = model.generate(**single, max_new_tokens=5)[0, single["input_ids"].shape[1] :]
        assert row[: len(alone)].tolist() == alone.tolist()


def test_files_for_transformers_4_are_there(gemma: Port, tmp_path: Path) -> None:
    export_hf(gemma.ported, gemma.source, gemma.target, gemma.encoder(), tmp_path / "model")
    images = json.loads((tmp_path / "model/preprocessor_config.json").read_text())
    nested = json.loads((tmp_path / "model/processor_config.json").read_text())
    assert images["processor_class"] == nested["processor_class"] == "Blip2Processor"
    assert images["size"] == nested["image_processor"]["size"] == {"height": 16, "width": 16}
    assert images["image_processor_type"] == "BlipImageProcessor"
    tokens = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert tokens["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokens["padding_side"] == "left"
    assert "backend" not in tokens


def test_extra_special_tokens_are_spelled_for_both_transformers(llama: Port, tmp_path: Path) -> None:
    """4.57 stops at a list under the 5.x name."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.add_special_tokens({"extra_special_tokens": ["<think>", "<|end|>"]})
    usage = find_usage(llama.encoder("image-bos-text"), [])
    save_processor(tmp_path, tokenizer, llama.ported.image_processor, 300, usage)
    saved = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert saved["additional_special_tokens"] == ["<think>", "<|end|>"]
    assert "extra_special_tokens" not in saved
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.all_special_tokens == tokenizer.all_special_tokens
    assert again.decode(again("red<think>").input_ids, skip_special_tokens=True) == "red"


def test_the_chat_template_stays_with_the_tokenizer(root: Path, tmp_path: Path) -> None:
    folder = target_folder(root, "llama", name="chatty")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}<{{ m['content'] }}>{% endfor %}")
    port = make_port(root, folder)
    export_hf(port.ported, port.source, port.target, port.encoder(), tmp_path / "model")
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "model").tokenizer
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<hello>"


def test_a_tokenizer_without_pad_gets_the_end_token(llama: Port, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.pad_token = None
    usage = find_usage(llama.encoder("image-bos-text"), [])
    save_processor(tmp_path, tokenizer, llama.ported.image_processor, 300, usage)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["pad_token"] == "</s>"
    assert tokenizer.pad_token is None


def test_an_image_token_elsewhere_is_refused(llama: Port, tmp_path: Path) -> None:
    usage = find_usage(llama.encoder(), [])
    with pytest.raises(CheckpointError, match="at id 300, but the model expects it at 12"):
        save_processor(tmp_path, llama.ported.tokenizer, llama.ported.image_processor, 12, usage)
