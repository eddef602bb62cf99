"""Texts behind a shared prefix have the loss and gradients of separate samples: to 1e-10 in float64."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.vlm.batches import causal_batch, seq2seq_batch
from tests.vlm.exact import float64_everywhere
from tests.vlm.llms import LLMS, build_llm
from vpgtrans.data.batches import Batch
from vpgtrans.vlm.anatomy import inspect_model, plan_port
from vpgtrans.vlm.assemble import Ported, assemble_port
from vpgtrans.vlm.forward import Trainee
from vpgtrans.vlm.llm_call import logits_at, packed_logits, sliding_window, token_losses
from vpgtrans.vlm.packing import IGNORED, Text, pack_texts
from vpgtrans.vlm.probe import _differences, why_unshared
from vpgtrans.vlm.sharing import UNSHARED, WINDOWED, unshared_reason
from vpgtrans.weights.locate import ModelFiles

FAMILIES = ["llama", "qwen3", "gemma3_text", "opt", "gpt_neox", "phi", "gpt2", "granite", "cohere2"]
TRAINED = ("vision_norm", "query_tokens", "qformer", "projector")
CAUSAL = [name for name in LLMS if LLMS[name][0] not in ("t5", "mt5", "umt5", "longt5")]

Port = Callable[..., Ported]


@pytest.fixture
def port(source: ModelFiles, saved_llm: Any) -> Port:
    def make(name: str, dtype: torch.dtype = torch.float64) -> Ported:
        ported = assemble_port(source, saved_llm(name)[1], torch.float32)
        torch.manual_seed(3)
        projector = nn.Linear(24, 32)
        nn.init.normal_(projector.weight, std=0.3)
        ported.family.set_projector(ported.model, projector)
        ported.model.to(dtype)
        return ported

    return make


def random_batch(ported: Ported, seed: int, longest: int = 9) -> Batch:
    """Some images with one to six texts each in any order: one-token texts, prompts, equal beginnings."""
    draw = random.Random(seed)
    images, rows, prompts = [], [], []
    for image in range(draw.randint(1, 4)):
        common = [draw.randint(3, 60) for _ in range(draw.randint(0, 2))]
        for _ in range(draw.randint(1, 6)):
            row = [*common, *(draw.randint(3, 60) for _ in range(draw.randint(0, longest))), 2]
            rows.append(row)
            prompts.append(draw.randint(0, len(row) - 1))
            images.append(image)
    order = draw.sample(range(len(rows)), len(rows))
    rows, prompts, images = ([column[n] for n in order] for column in (rows, prompts, images))
    if ported.llm.config.is_encoder_decoder:
        batch = seq2seq_batch(
            ported, [row[: p // 2] for row, p in zip(rows, prompts, strict=True)], rows, images
        )
    else:
        batch = causal_batch(ported, rows, prompts, images)
    batch.pixel_values = batch.pixel_values.double()
    return batch


def loss_and_gradients(
    ported: Ported, batch: Batch, **how: Any
) -> tuple[Tensor, int, list[Tensor], list[str]]:
    trainee = Trainee(ported, **how)
    trainee.module.requires_grad_(False)
    names = [name for part in TRAINED for name in trainee.parts[part]]
    parameters = [trainee.module.get_parameter(name).requires_grad_(True) for name in names]
    total, count = trainee.loss(batch)
    return total.detach(), count, list(torch.autograd.grad(total, parameters)), names


def check_equal(ported: Ported, batch: Batch) -> None:
    with float64_everywhere():
        wanted, number, wanted_grads, names = loss_and_gradients(ported, batch, prefix_sharing="off")
        got, count, grads, _ = loss_and_gradients(ported, batch)
    assert count == number == batch.num_supervised
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=0)
    scale = max(float(grad.abs().max()) for grad in wanted_grads)
    assert scale > 1e-3
    for name, grad, want in zip(names, grads, wanted_grads, strict=True):
        torch.testing.assert_close(grad, want, rtol=0, atol=1e-10 * scale, msg=name)


@pytest.mark.parametrize("name", [*FAMILIES, "t5", "t5-gated-untied"])
def test_loss_and_gradients_equal_those_of_separate_samples(name: str, port: Port) -> None:
    ported = port(name)
    assert Trainee(ported).unshared is None
    for seed in range(4):
        check_equal(ported, random_batch(ported, seed))


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_packed_micro_batches_add_up_to_the_unpacked_batch(name: str, port: Port) -> None:
    """Gradient accumulation: sums over any division of a batch, an image's texts apart or together."""
    ported = port(name)
    batch = random_batch(ported, 5)
    with float64_everywhere():
        wanted, number, wanted_grads, _ = loss_and_gradients(ported, batch, prefix_sharing="off")
        parts = [part_of(batch, rows) for rows in torch.arange(number_of(batch)).split(3)]
        found = [loss_and_gradients(ported, part) for part in parts]
    assert len(parts) > 2
    assert sum(count for _, count, _, _ in found) == number
    torch.testing.assert_close(sum(total for total, _, _, _ in found), wanted, rtol=1e-10, atol=0)
    scale = max(float(grad.abs().max()) for grad in wanted_grads)
    for place, want in enumerate(wanted_grads):
        got = sum(grads[place] for _, _, grads, _ in found)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10 * scale)


def number_of(batch: Batch) -> int:
    return len(batch.pair_ids)


def part_of(batch: Batch, rows: Tensor) -> Batch:
    return replace(
        batch,
        image_index=batch.image_index[rows],
        input_ids=batch.input_ids[rows],
        attention_mask=batch.attention_mask[rows],
        labels=batch.labels[rows],
        pair_ids=[batch.pair_ids[row] for row in rows.tolist()],
    )


@pytest.mark.parametrize(("dtype", "used"), [(torch.bfloat16, "eager"), (torch.float32, "sdpa")])
def test_sixteen_bits_on_a_cpu_train_with_plain_attention_and_leave_the_llm_as_it_was(
    dtype: torch.dtype, used: str
) -> None:
    llm = build_llm("llama").to(dtype)
    seen: list[str] = []
    llm.model.register_forward_pre_hook(lambda module, args: seen.append(module.config._attn_implementation))
    ids = torch.tensor([[1, 5, 9]])
    inputs = {"inputs_embeds": llm.get_input_embeddings()(ids), "attention_mask": torch.ones_like(ids)}
    logits_at(llm, torch.tensor([1]), **inputs)
    llm(**inputs)
    assert seen == [used, "sdpa"]
    llm.model.gradient_checkpointing = True
    logits_at(llm, torch.tensor([1]), **inputs)
    assert seen[-1] == "sdpa", "a layer that runs again in the backward pass must find the same attention"


@pytest.mark.parametrize("name", ["gemma3_text", "mistral"])
def test_texts_longer_than_the_sliding_window_are_exact(name: str, port: Port) -> None:
    ported = port(name)
    batch = random_batch(ported, 5, longest=40)
    assert batch.input_ids.shape[1] > 2 * sliding_window(ported.llm.config)
    check_equal(ported, batch)


def test_the_llm_reads_each_prefix_once(port: Port) -> None:
    """Ten texts of two images: the LLM gets two soft prompts, and no padding to speak of."""
    ported = port("llama")
    rows = [[20 + n, 30, 40, 2] for n in range(10)]
    batch = causal_batch(ported, rows, [0] * 10, [0, 1] * 5)
    seen: list[Tensor] = []
    ported.llm.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    trainee = Trainee(ported)
    assert trainee.unshared is None
    seen.clear()
    trainee.loss(Batch(**{**vars(batch), "pixel_values": batch.pixel_values.double()}))
    assert len(seen) == 1
    assert seen[0].shape[0] * seen[0].shape[1] == 2 * (5 + 5 * 3)


def test_the_encoder_runs_once_for_every_image_and_prompt(port: Port) -> None:
    ported = port("t5")
    answers = [[20 + n, 30, 2] for n in range(6)]
    batch = seq2seq_batch(ported, [[], [], [5], [], [], [5]], answers, [0, 1, 0, 0, 1, 0])
    batch.pixel_values = batch.pixel_values.double()
    widths: list[int] = []
    ported.llm.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(len(kwargs["inputs_embeds"])), with_kwargs=True
    )
    Trainee(ported).loss(batch)
    Trainee(ported, prefix_sharing="off").loss(batch)
    assert widths == [3, 6]


@pytest.mark.parametrize("name", CAUSAL)
def test_probe_and_table_agree_and_windows_hold_for_every_type(name: str) -> None:
    """The table's refusals are the types that fail by measurement; windows beyond the tested list refuse."""
    llm = build_llm(name)
    reason = unshared_reason(llm.config.to_dict())
    assert why_unshared(llm) == reason
    if llm.config.model_type in UNSHARED and llm.config.model_type not in ("bloom", "gpt_neo"):
        try:
            wrong, _, scale = _differences(llm)
        except (RuntimeError, ValueError):
            return  # it takes no mask of its own at all
        assert wrong > 1e-3 * scale
    window = sliding_window(llm.config)
    if reason is None and window is not None and window < 30:
        assert llm.config.model_type in WINDOWED
        assert window_error(llm) < 1e-5


def window_error(llm: Any) -> float:
    """Two texts of 30 tokens behind a prefix of five: relative error of the losses' sum."""
    prefix = [1, 7, 7, 7, 9]
    tails = [[(7 * n + k) % 300 + 3 for n in range(30)] for k in (1, 2)]
    texts = [Text(0, [*prefix, *tail], [IGNORED] * 5 + tail) for tail in tails]
    rows = pack_texts(texts, 7)
    assert rows is not None
    ids = torch.tensor([one.ids for one in texts])
    embedding = llm.get_input_embeddings()
    with torch.no_grad():
        packed = packed_logits(llm, embedding(rows.input_ids), rows)[rows.place_of_label]
        logits = llm(inputs_embeds=embedding(ids), attention_mask=torch.ones_like(ids)).logits[:, 4:-1]
    assert rows.max_position > 30
    return float((packed - logits.flatten(0, 1)).abs().max() / logits.abs().max())


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        *((name, {}) for name in ("phi3", "starcoder2", "mixtral", "phimoe")),
        *((name, {"use_sliding_window": True, "max_window_layers": 1}) for name in ("qwen2", "qwen3")),
        ("smollm3", {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}),
    ],
)
def test_windows_that_some_models_of_a_type_have(name: str, extra: dict[str, Any]) -> None:
    llm = build_llm(name, sliding_window=16, **extra)
    assert sliding_window(llm.config) == 16
    assert llm.config.model_type in WINDOWED
    assert window_error(llm) < 1e-5


def test_a_window_that_is_ignored_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: the mask of the whole text for layers that slide."""
    llm = build_llm("gemma3_text")
    monkeypatch.setattr("vpgtrans.vlm.llm_call.sliding_window", lambda config: None)
    assert window_error(llm) > 1e-3


@pytest.mark.parametrize("name", LLMS)
def test_logits_at_places_are_those_of_all_logits(name: str) -> None:
    """Soft-capping, logit scales and biases stay: only positions are selected."""
    llm = build_llm(name)
    ids = torch.tensor([[1, 5, 9, 30, 2], [1, 40, 41, 42, 2]])
    inputs: dict[str, Any] = {
        "inputs_embeds": llm.get_input_embeddings()(ids),
        "attention_mask": torch.ones_like(ids),
    }
    if llm.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    places = torch.tensor([1, 3, 7, 8, 2])
    with torch.no_grad():
        wanted = llm(**inputs, use_cache=False).logits.flatten(0, 1)[places]
        got = logits_at(llm, places, **inputs)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))


def test_the_head_reads_the_places_alone_and_is_left_as_it_was() -> None:
    llm = build_llm("gemma2", final_logit_softcapping=3.0)
    rows: list[int] = []
    llm.lm_head.register_forward_hook(lambda module, args, output: rows.append(args[0].shape[1]))
    ids = torch.tensor([[1, 5, 9, 30]])
    embeds = llm.get_input_embeddings()(ids)
    logits = logits_at(llm, torch.tensor([2, 3]), inputs_embeds=embeds, attention_mask=torch.ones_like(ids))
    assert rows == [2]
    assert logits.shape == (2, 320)
    assert float(logits.detach().abs().max()) <= 3.0
    assert llm(input_ids=ids).logits.shape == (1, 4, 320)
    assert not llm.lm_head._forward_pre_hooks


def test_losses_of_labels_that_share_a_place() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 11, dtype=torch.float64, requires_grad=True)
    labels, place = torch.tensor([4, 4, 9, 0, 10]), torch.tensor([0, 0, 0, 1, 2])
    wanted = nn.functional.cross_entropy(logits[place], labels, reduction="sum")
    got = token_losses(logits, labels, place)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=0)
    for a, b in zip(torch.autograd.grad(got, logits), torch.autograd.grad(wanted, logits), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert token_losses(logits.bfloat16(), labels, place).dtype == torch.float32


def test_llms_that_cannot_share_are_trained_as_separate_samples(port: Port) -> None:
    ported = port("gpt_neo")
    trainee = Trainee(ported)
    assert trainee.unshared == UNSHARED["gpt_neo"]
    batch = random_batch(ported, 1)
    check_equal(ported, batch)
    assert Trainee(ported, prefix_sharing="off").unshared == "prefix_sharing is off"


def test_alibi_is_a_matter_of_the_config() -> None:
    assert unshared_reason({"model_type": "falcon", "alibi": True})
    assert unshared_reason({"model_type": "falcon", "alibi": False}) is None
    assert "conv" in str(
        unshared_reason({"model_type": "unheard", "layer_types": ["conv", "full_attention"]})
    )


@pytest.mark.parametrize(
    ("name", "said"), [("llama", "once for all texts"), ("mamba", "recurrent"), ("t5", "encoder")]
)
def test_inspect_says_it_before_anything_is_loaded(
    name: str, said: str, saved_llm: Any, source: ModelFiles
) -> None:
    _, files = saved_llm(name)
    anatomy = inspect_model(files)
    assert said in anatomy.facts()["visual prefix"]
    detail = plan_port(source, files).rows[-1][2]
    assert ("sample" in detail or "once a text" in detail) == (name == "mamba")


def test_a_window_of_an_untested_type_is_not_trusted(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the window an unknown type falls back, within it the plain mask is right for any."""
    ported = port("mistral")
    trainee = Trainee(ported)
    long, short = random_batch(ported, 5, longest=40), random_batch(ported, 5, longest=4)
    assert trainee._packed(long) is not None
    monkeypatch.setattr("vpgtrans.vlm.llm_call.WINDOWED", frozenset())
    assert trainee._packed(long) is None
    assert trainee._packed(short) is not None
