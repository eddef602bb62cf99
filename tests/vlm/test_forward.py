"""The trainee's loss, gradients and generation are the stock class's own."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from tests.vlm.batches import causal_batch, embeds_of, prompt_batch, seq2seq_batch
from tests.vlm.exact import float64_everywhere
from vpgtrans.data.batches import Batch
from vpgtrans.errors import DataError, ShapeError
from vpgtrans.vlm.assemble import Ported, assemble_port
from vpgtrans.vlm.forward import Trainee
from vpgtrans.weights.locate import ModelFiles

CAUSAL = ["llama", "opt", "gemma3_text", "gpt_neo", "granite", "cohere"]
FINE_TUNE = ("vision_norm", "query_tokens", "qformer", "projector")
# (rows, prompt lengths, images): ragged, one image twice, a supervised first token
TEXTS = ([[5, 6, 9, 30, 31], [40, 41, 2], [50, 2]], [2, 1, 0], [0, 1, 0])

Port = Callable[..., Ported]


@pytest.fixture
def port(source: ModelFiles, saved_llm: Any) -> Port:
    """A function that ports the source to a tiny LLM by test name, with a projector of some size."""

    def make(name: str, dtype: torch.dtype = torch.float32) -> Ported:
        ported = assemble_port(source, saved_llm(name)[1], dtype)
        torch.manual_seed(3)
        projector = nn.Linear(24, 32)
        nn.init.normal_(projector.weight, std=0.3)
        ported.family.set_projector(ported.model, projector)
        return ported

    return make


def make_batch(ported: Ported) -> Batch:
    if ported.llm.config.is_encoder_decoder:
        return seq2seq_batch(ported, [[5, 6], [7], []], [[9, 30, 2], [40, 2], [50, 51, 52, 2]], [0, 1, 0])
    return causal_batch(ported, *TEXTS)


def train(trainee: Trainee, *parts: str) -> dict[str, nn.Parameter]:
    trainee.module.requires_grad_(False)
    named = {name: trainee.module.get_parameter(name) for part in parts for name in trainee.parts[part]}
    for parameter in named.values():
        parameter.requires_grad_(True)
    return named


def stock_output(ported: Ported, batch: Batch) -> Any:
    return ported.model(
        pixel_values=batch.pixel_values[batch.image_index],
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
    )


def plain_loss(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> torch.Tensor:
    """Mean cross entropy in the logits' own dtype, one label at a time."""
    losses = [
        -logits[row, place - shift].log_softmax(-1)[labels[row, place]]
        for row in range(labels.shape[0])
        for place in range(shift, labels.shape[1])
        if labels[row, place] != -100
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, torch.float32) for name in (*CAUSAL, "mamba", "t5", "mt5")]
    # Mamba casts its logits to float32 itself
    + [(name, torch.float64) for name in (*CAUSAL, "t5", "mt5")],
)
def test_loss_and_gradients_equal_the_stock_class(name: str, dtype: torch.dtype, port: Port) -> None:
    ported = port(name)
    ported.model.to(dtype)
    trainee, batch = Trainee(ported), make_batch(ported)
    batch.pixel_values = batch.pixel_values.to(dtype)
    parameters = train(trainee, *FINE_TUNE)
    seq2seq = ported.llm.config.is_encoder_decoder

    exact = dtype == torch.float64
    with float64_everywhere() if exact else nullcontext():
        stock = stock_output(ported, batch)
        wanted = plain_loss(stock.logits, batch.labels, 0 if seq2seq else 1) if exact else stock.loss
        wanted_grads = torch.autograd.grad(wanted, list(parameters.values()))
        total, count = trainee.loss(batch)
        grads = torch.autograd.grad(total / count, list(parameters.values()))

    assert count == batch.num_supervised == (9 if seq2seq else 7)
    assert total.dtype == dtype
    tolerance = 1e-10 if exact else 1e-6
    torch.testing.assert_close(total / count, wanted, rtol=tolerance, atol=tolerance)
    scale = max(float(grad.abs().max()) for grad in wanted_grads)
    for key, got, want in zip(parameters, grads, wanted_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=10 * tolerance * scale, msg=key)
    for part in ("projector", "query_tokens"):
        for key in trainee.parts[part]:
            assert float(grads[list(parameters).index(key)].abs().max()) > 0, key


def test_parts_name_every_parameter_but_the_llm_once(port: Port) -> None:
    ported = port("llama")
    trainee = Trainee(ported)
    listed = [name for names in trainee.parts.values() for name in names]
    everything = {
        name for name, _ in ported.model.named_parameters() if not name.startswith("language_model.")
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == everything
    assert trainee.parts["vision_norm"] == (
        "vision_model.post_layernorm.weight",
        "vision_model.post_layernorm.bias",
    )
    assert trainee.parts["query_tokens"] == ("query_tokens",)
    assert not any("post_layernorm" in name for name in trainee.parts["vision_encoder"])


def test_parts_follow_a_new_projector(port: Port) -> None:
    ported = port("llama")
    trainee = Trainee(ported)
    ported.family.set_projector(ported.model, nn.Linear(24, 32))
    (weight, bias) = (trainee.module.get_parameter(name) for name in trainee.parts["projector"])
    weight.requires_grad_(True)
    trainee.loss(make_batch(ported))[0].backward()
    assert weight is ported.model.language_projection.weight
    assert weight.grad is not None
    assert bias.shape == (32,)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "t5"])
def test_stored_features_at_either_cut_give_the_same_loss(name: str, port: Port) -> None:
    ported = port(name)
    trainee, batch = Trainee(ported), make_batch(ported)
    wanted, _ = trainee.loss(batch)
    vision = trainee.vision_features(batch)
    vpg = trainee.vpg_output(batch)
    assert vision.shape == (2, 5, 20)
    assert vpg.shape == (2, 4, 24)
    for features, cut in ((vision, "vision"), (vpg, "vpg")):
        stored = replace(batch, pixel_values=None, features=features, features_cut=cut)
        got, _ = trainee.loss(stored)
        assert torch.equal(got, wanted), cut


def test_vision_features_stand_before_the_norm(port: Port) -> None:
    ported = port("llama")
    batch = make_batch(ported)
    vision = Trainee(ported).vision_features(batch)
    stock = ported.model.vision_model(batch.pixel_values).last_hidden_state
    assert not torch.allclose(vision, stock, atol=1e-2)
    torch.testing.assert_close(ported.model.vision_model.post_layernorm(vision), stock)


def test_each_image_runs_once(port: Port) -> None:
    ported = port("llama")
    trainee, batch = Trainee(ported), make_batch(ported)
    sizes: list[int] = []
    ported.model.vision_model.encoder.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    ported.model.qformer.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(kwargs["query_embeds"].shape[0]), with_kwargs=True
    )
    trainee.loss(batch)
    assert len(batch.input_ids) == 3
    assert sizes == [2, 2]


def test_texts_take_their_own_image(port: Port) -> None:
    """Exchanging the images of two texts equals exchanging the pixels."""
    ported = port("llama")
    trainee, batch = Trainee(ported), make_batch(ported)
    other = replace(batch, image_index=torch.tensor([1, 0, 1]), pixel_values=batch.pixel_values.flip(0))
    wrong = replace(batch, image_index=torch.tensor([1, 0, 1]))
    with torch.no_grad():
        loss = trainee.loss(batch)[0]
        torch.testing.assert_close(trainee.loss(other)[0], loss)
        assert abs(float(trainee.loss(wrong)[0] - loss)) > 1e-3


@pytest.mark.parametrize(
    ("trained", "vision_graph", "vpg_graph"),
    [
        (("projector",), False, False),
        (FINE_TUNE, False, True),
        (("vision_norm",), False, True),
        (("query_tokens",), False, True),
        (("vision_encoder",), True, True),
    ],
)
def test_frozen_parts_build_no_graph(
    trained: tuple[str, ...], vision_graph: bool, vpg_graph: bool, port: Port
) -> None:
    ported = port("llama")
    trainee, batch = Trainee(ported), make_batch(ported)
    train(trainee, *trained)
    assert trainee.vision_features(batch).requires_grad == vision_graph
    assert trainee.vpg_output(batch).requires_grad == vpg_graph
    assert trainee.soft_prompt(batch).requires_grad


@pytest.mark.parametrize("sharing", ["auto", "off"])
def test_logits_are_made_only_where_a_loss_is(sharing: Any, port: Port) -> None:
    ported = port("llama")
    trainee, batch = Trainee(ported, sharing), make_batch(ported)
    assert (trainee.unshared is None) == (sharing == "auto")
    read: list[int] = []
    ported.llm.lm_head.register_forward_hook(lambda module, args, output: read.append(output.shape[1]))
    batch.labels[2, :7] = -100  # one label is left in the third row, whose other places are padding
    batch.labels[1, :6] = -100
    total, count = trainee.loss(batch)
    assert count == 5
    assert read == [count]
    torch.testing.assert_close(total / count, stock_output(ported, batch).loss)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_padding_is_told_by_the_mask(name: str, port: Port) -> None:
    """The LLM gets the mask as it is, and what stands on padding changes nothing."""
    ported = port(name)
    trainee, batch = Trainee(ported, "off"), make_batch(ported)
    masks: list[torch.Tensor] = []
    ported.llm.register_forward_pre_hook(
        lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    with torch.no_grad():
        loss = trainee.loss(batch)[0]
        batch.input_ids[batch.attention_mask == 0] = 99
        assert torch.equal(trainee.loss(batch)[0], loss)
        packed = Trainee(ported)
        shared = packed.loss(batch)[0]
        batch.input_ids[batch.attention_mask == 0] = 7
        assert torch.equal(packed.loss(batch)[0], shared)
    assert torch.equal(masks[0], batch.attention_mask)
    assert (batch.attention_mask == 0).any()


def test_a_supervised_first_token_has_no_prediction(port: Port) -> None:
    """Label 0 stands before every prediction: the stock class drops it as well."""
    ported = port("llama")
    trainee, batch = Trainee(ported), make_batch(ported)
    batch.labels[0, 0] = 1
    total, count = trainee.loss(batch)
    assert count == 7
    torch.testing.assert_close(total / count, stock_output(ported, batch).loss)


def test_dropout_of_the_vpg_follows_its_mode_and_the_llm_stays_still(port: Port) -> None:
    ported = port("opt")  # its dropout is 0.1
    trainee, batch = Trainee(ported), make_batch(ported)
    assert not ported.llm.training
    still = trainee.loss(batch)[0]
    assert torch.equal(still, trainee.loss(batch)[0])
    ported.model.qformer.train()
    assert not torch.equal(still, trainee.loss(batch)[0])


def test_low_precision_llm_over_float32_vpg(port: Port) -> None:
    ported = port("llama", torch.bfloat16)
    trainee, batch = Trainee(ported), make_batch(ported)
    parameters = train(trainee, *FINE_TUNE)
    total, count = trainee.loss(batch)
    total.backward()
    assert total.dtype == torch.float32
    assert ported.llm.lm_head.weight.dtype == torch.bfloat16
    assert {parameter.grad.dtype for parameter in parameters.values()} == {torch.float32}
    exact = port("llama")
    wanted, _ = Trainee(exact).loss(batch)
    assert float(total.detach() / count) == pytest.approx(float(wanted.detach() / count), rel=0.02)


def test_wrong_number_of_image_places_names_the_text(port: Port) -> None:
    ported = port("llama")
    batch = make_batch(ported)
    batch.input_ids[1, 1] = 9
    with pytest.raises(DataError, match=r"'pair1' has 3 image places, the soft prompt has 4 tokens"):
        Trainee(ported).loss(batch)


def test_a_projector_of_the_wrong_width_says_both_numbers(port: Port) -> None:
    ported = port("llama")
    ported.family.set_projector(ported.model, nn.Linear(24, 40))
    with pytest.raises(ShapeError, match=r"40 wide, the LLM's embeddings 32"):
        Trainee(ported).loss(make_batch(ported))
    ported.family.set_projector(ported.model, nn.Linear(20, 32))
    with pytest.raises(ShapeError, match=r"24 wide, the projector reads 20"):
        Trainee(ported).loss(make_batch(ported))


def test_a_batch_without_image_is_refused(port: Port) -> None:
    ported = port("llama")
    batch = replace(make_batch(ported), pixel_values=None)
    with pytest.raises(DataError, match="neither pixel values nor stored features"):
        Trainee(ported).loss(batch)


@pytest.mark.parametrize("name", ["llama", "opt", "gemma3_text", "gpt2", "t5"])
def test_generation_equals_the_stock_class_and_is_greedy(name: str, port: Port) -> None:
    ported = port(name)
    batch = prompt_batch(ported, [[5, 6, 9], [30]], [0, 1])
    got = Trainee(ported).generate(batch, 6, [2])
    stock = ported.model.generate(
        pixel_values=batch.pixel_values,
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=6,
        do_sample=False,
        eos_token_id=2,
    )
    skip = 1 if ported.llm.config.is_encoder_decoder else batch.input_ids.shape[1]
    for ids, row in zip(got, stock[:, skip:].tolist(), strict=True):
        assert ids == row[: len(ids)]
    if not ported.llm.config.is_encoder_decoder:
        assert got == greedy_by_hand(ported, batch, 6)


def greedy_by_hand(ported: Ported, batch: Batch, steps: int) -> list[list[int]]:
    """One text at a time without padding or cache: append the likeliest token, run again."""
    answers = []
    for row in range(len(batch.input_ids)):
        kept = batch.attention_mask[row].bool()
        alone = replace(batch, input_ids=batch.input_ids[row, kept][None])
        with torch.no_grad():
            soft = ported.model.get_image_features(batch.pixel_values[row][None]).pooler_output
            embeds = embeds_of(ported.llm, soft, alone, ported.image_token_id)
            ids: list[int] = []
            while len(ids) < steps and 2 not in ids:
                mask = torch.ones(1, embeds.shape[1], dtype=torch.long)
                logits = ported.llm(inputs_embeds=embeds, attention_mask=mask, use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
                word = ported.llm.get_input_embeddings()(torch.tensor([[ids[-1]]]))
                embeds = torch.cat([embeds, word], dim=1)
        answers.append(ids)
    return answers


def test_generation_stops_at_any_end_token_and_keeps_it(port: Port) -> None:
    ported = port("llama")
    trainee = Trainee(ported)
    batch = prompt_batch(ported, [[5, 6, 9], [30]], [0, 1])
    free = trainee.generate(batch, 6, [])
    assert [len(ids) for ids in free] == [6, 6]
    end = free[0][2]
    cut = trainee.generate(batch, 6, [319, end])
    assert cut[0] == free[0][: free[0].index(end) + 1]
    assert cut[1] == (free[1][: free[1].index(end) + 1] if end in free[1] else free[1])
