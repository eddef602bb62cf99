"""The closed-form projector from captions recovers planted relations and equals the textbook ridge."""

import pytest
import torch
from torch import Tensor, nn

from tests.alignment.planted import normal
from vpgtrans.alignment.captions_init import projector_from_captions
from vpgtrans.alignment.fusion import linear_layer
from vpgtrans.errors import DataError, ShapeError

IMAGES, QUERIES, WIDTH_Q, WIDTH_T = 90, 4, 5, 3  # more images than one chunk of 64


def planted() -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """VPG outputs, captions of four tokens whose embeddings are ``W x + b``, newline, W, b."""
    outputs_INQ = normal(IMAGES, QUERIES, WIDTH_Q, dtype=torch.float64) + 2
    weight_TQ = normal(WIDTH_T, WIDTH_Q, seed=1, dtype=torch.float64)
    bias_T = normal(WIDTH_T, seed=2, dtype=torch.float64)
    captions = list(outputs_INQ @ weight_TQ.T + bias_T)
    return outputs_INQ, captions, normal(WIDTH_T, seed=3, dtype=torch.float64), weight_TQ, bias_T


def random_captions(lengths: list[int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [normal(length, WIDTH_T, seed=100 + i, dtype=dtype) for i, length in enumerate(lengths)]


def textbook(x_RQ: Tensor, y_RT: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    mean_Q, mean_T = x_RQ.mean(0), y_RT.mean(0)
    x_RQ, y_RT = x_RQ - mean_Q, y_RT - mean_T
    gram = x_RQ.T @ x_RQ
    weight_TQ = (
        y_RT.T @ x_RQ @ torch.linalg.inv(gram + strength * gram.trace() / len(gram) * torch.eye(len(gram)))
    )
    return weight_TQ, mean_T - weight_TQ @ mean_Q


def test_a_planted_relation_is_recovered_as_the_ridge_goes_to_zero():
    outputs_INQ, captions, newline_T, weight_TQ, bias_T = planted()
    projector = projector_from_captions(outputs_INQ, captions, newline_T, ridge=1e-14)
    assert projector.weight.dtype == torch.float64
    torch.testing.assert_close(projector.weight.detach(), weight_TQ, rtol=0, atol=1e-10)
    torch.testing.assert_close(projector.bias.detach(), bias_T, rtol=0, atol=1e-10)


def test_position_pads_with_the_newline_and_cuts_what_is_beyond_the_queries():
    outputs_INQ, _, newline_T, _, _ = planted()
    lengths = [1 + i % 6 for i in range(IMAGES)]  # 1 to 6 tokens for 4 queries
    captions = random_captions(lengths)
    goals = [
        caption[query] if query < len(caption) else newline_T
        for caption in captions
        for query in range(QUERIES)
    ]
    expected_TQ, expected_T = textbook(outputs_INQ.flatten(0, 1), torch.stack(goals), 0.1)
    projector = projector_from_captions(outputs_INQ, captions, newline_T, ridge=0.1)
    torch.testing.assert_close(projector.weight.detach(), expected_TQ)
    torch.testing.assert_close(projector.bias.detach(), expected_T)


def test_mean_gives_every_query_the_captions_mean():
    outputs_INQ, _, newline_T, _, _ = planted()
    captions = random_captions([1 + i % 6 for i in range(IMAGES)])
    goals = torch.stack([caption.mean(0) for caption in captions]).repeat_interleave(QUERIES, 0)
    expected_TQ, expected_T = textbook(outputs_INQ.flatten(0, 1), goals, 0.1)
    projector = projector_from_captions(outputs_INQ, captions, newline_T, ridge=0.1, assignment="mean")
    torch.testing.assert_close(projector.weight.detach(), expected_TQ)
    torch.testing.assert_close(projector.bias.detach(), expected_T)


@pytest.mark.parametrize("bias", [True, False])
def test_a_base_gets_what_it_leaves_added(bias: bool):
    outputs_INQ, _, newline_T, _, _ = planted()
    captions = random_captions([QUERIES] * IMAGES)
    base = nn.Linear(WIDTH_Q, WIDTH_T, bias=bias, dtype=torch.float64)
    x_RQ = outputs_INQ.flatten(0, 1)
    delta_TQ, delta_T = textbook(x_RQ, torch.cat(captions) - base(x_RQ).detach(), 0.1)
    projector = projector_from_captions(outputs_INQ, captions, newline_T, ridge=0.1, base=base)
    torch.testing.assert_close(projector.weight.detach(), base.weight.detach() + delta_TQ)
    expected_T = delta_T + (base.bias.detach() if bias else 0)
    torch.testing.assert_close(projector.bias.detach(), expected_T)


def test_a_perfect_base_stays_as_it_is():
    outputs_INQ, captions, newline_T, weight_TQ, bias_T = planted()
    base = linear_layer(weight_TQ, bias_T)
    projector = projector_from_captions(outputs_INQ, captions, newline_T, ridge=0.1, base=base)
    torch.testing.assert_close(projector.weight.detach(), weight_TQ)
    torch.testing.assert_close(projector.bias.detach(), bias_T)


def test_a_strong_ridge_keeps_the_base_but_for_the_mean():
    outputs_INQ, _, newline_T, _, _ = planted()
    captions = random_captions([QUERIES] * IMAGES)
    base = nn.Linear(WIDTH_Q, WIDTH_T, dtype=torch.float64)
    projector = projector_from_captions(outputs_INQ, captions, newline_T, ridge=1e12, base=base)
    torch.testing.assert_close(projector.weight.detach(), base.weight.detach())
    torch.testing.assert_close(
        projector(outputs_INQ).detach().flatten(0, 1).mean(0), torch.cat(captions).mean(0)
    )


def test_streams_give_the_same_as_tensors_and_are_read_once():
    outputs_INQ, captions, newline_T, _, _ = planted()
    expected = projector_from_captions(outputs_INQ, captions, newline_T, ridge=0.1)
    reads = {"outputs": 0, "captions": 0}

    def stream(kind: str, items):
        for item in items:
            reads[kind] += 1
            yield item

    found = projector_from_captions(
        stream("outputs", outputs_INQ), stream("captions", captions), newline_T, ridge=0.1
    )
    assert torch.equal(found.weight, expected.weight)
    assert reads == {"outputs": IMAGES, "captions": IMAGES}


def test_float32_comes_out_of_float32_and_half_precision():
    outputs_INQ, captions, newline_T, weight_TQ, _ = planted()
    halves = projector_from_captions(
        outputs_INQ.half(), [caption.bfloat16() for caption in captions], newline_T.bfloat16(), ridge=1e-6
    )
    assert halves.weight.dtype == torch.float32
    torch.testing.assert_close(halves.weight.detach().double(), weight_TQ, rtol=0, atol=0.02)
    assert halves.weight.requires_grad
    base = nn.Linear(WIDTH_Q, WIDTH_T, dtype=torch.bfloat16)
    on_top = projector_from_captions(outputs_INQ, captions, newline_T, ridge=0.1, base=base)
    assert on_top.weight.dtype == torch.bfloat16


def test_bad_input_is_refused_in_words():
    outputs_INQ, captions, newline_T, _, _ = planted()

    def make(outputs=outputs_INQ, texts=captions, newline=newline_T, base=None):
        return projector_from_captions(outputs, texts, newline, ridge=0.1, base=base)

    with pytest.raises(DataError, match="no image with a caption"):
        make([], [])
    with pytest.raises(DataError, match="differ in number"):
        make(texts=captions[:-1])
    with pytest.raises(DataError, match="differ in number"):
        make(outputs=outputs_INQ[:-1])
    with pytest.raises(DataError, match="caption 2 .* has no tokens"):
        make(texts=[*captions[:2], captions[2][:0], *captions[3:]])
    with pytest.raises(ShapeError, match="caption 0 has embeddings of width 3, the newline one of 4"):
        make(newline=normal(4, dtype=torch.float64))
    mixed = [*outputs_INQ[:70], *normal(20, QUERIES, 6, dtype=torch.float64)]
    with pytest.raises(ShapeError, match="VPG output 70 has width 6, those before 5"):
        make(outputs=mixed)
    with pytest.raises(ShapeError, match=r"from width 7 to 3, .* have 5 and 3"):
        make(base=nn.Linear(7, 3, dtype=torch.float64))
