"""The fused projector is the composition, exactly; baselines are what they say."""

import pytest
import torch
from torch import nn

from tests.alignment.planted import normal
from vpgtrans.alignment.converter import Converter
from vpgtrans.alignment.fusion import fuse, linear_layer, random_projector, source_projector
from vpgtrans.errors import ShapeError

WIDTHS = [(3, 5, 7), (7, 5, 3), (1, 1, 1), (4, 9, 2)]


def projector_of(
    width_q: int, width_s: int, bias: bool = True, dtype: torch.dtype = torch.float64
) -> nn.Linear:
    layer = nn.Linear(width_q, width_s, bias=bias, dtype=dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed, dtype=dtype) + 0.3)
    return layer


def converter_of(width_s: int, width_t: int, dtype: torch.dtype = torch.float64) -> Converter:
    return Converter(
        normal(width_t, width_s, seed=10, dtype=dtype), normal(width_t, seed=11, dtype=dtype) + 0.3, "ridge"
    )


@pytest.mark.parametrize(("width_q", "width_s", "width_t"), WIDTHS)
@pytest.mark.parametrize("bias", [True, False])
def test_fused_equals_the_composition(width_q: int, width_s: int, width_t: int, bias: bool):
    projector, converter = projector_of(width_q, width_s, bias), converter_of(width_s, width_t)
    fused = fuse(projector, converter)
    x_MQ = normal(6, 4, width_q, seed=20, dtype=torch.float64)
    torch.testing.assert_close(fused(x_MQ), converter(projector(x_MQ)), rtol=1e-13, atol=1e-13)
    assert (fused.in_features, fused.out_features) == (width_q, width_t)


def test_fusion_by_hand():
    projector = linear_layer(torch.tensor([[2.0], [3.0]]), torch.tensor([1.0, -2.0]))
    converter = Converter(torch.tensor([[10.0, 100.0]]), torch.tensor([105.0]), "ridge")
    fused = fuse(projector, converter)
    assert fused.weight.tolist() == [[320.0]]  # 10 * 2 + 100 * 3
    assert fused.bias.tolist() == [-85.0]  # 10 * 1 - 100 * 2 + 105


def test_a_projector_without_bias_takes_the_converters():
    converter = converter_of(5, 3)
    assert torch.equal(fuse(projector_of(4, 5, bias=False), converter).bias, converter.bias_T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_product_is_float64_and_the_result_has_the_projectors_dtype(dtype: torch.dtype):
    projector, converter = projector_of(6, 500, dtype=dtype), converter_of(500, 4, torch.float32)
    fused = fuse(projector, converter)
    exact_TQ = converter.weight_TS.double() @ projector.weight.double()
    exact_T = converter.weight_TS.double() @ projector.bias.double() + converter.bias_T.double()
    assert torch.equal(fused.weight, exact_TQ.to(dtype))
    assert torch.equal(fused.bias, exact_T.to(dtype))


def test_fusion_leaves_its_inputs_and_the_global_generator_alone():
    projector, converter = projector_of(4, 5), converter_of(5, 3)
    before = projector.weight.clone(), projector.bias.clone(), converter.weight_TS.clone()
    state = torch.get_rng_state()
    fused = fuse(projector, converter)
    with torch.no_grad():
        fused.weight.zero_()
        fused.bias.zero_()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, (projector.weight, projector.bias, converter.weight_TS), strict=True)
    )


def test_the_fused_projector_can_be_trained():
    fused = fuse(projector_of(4, 5), converter_of(5, 3))
    fused(normal(2, 4, dtype=torch.float64)).sum().backward()
    assert fused.weight.grad is not None
    assert fused.bias.grad is not None


def test_widths_that_do_not_meet_are_refused_with_both():
    with pytest.raises(ShapeError, match=r"expects source width 7, the projector writes width 5"):
        fuse(projector_of(4, 5), converter_of(7, 3))


def test_a_random_projector_is_as_torch_starts_one_and_seeded():
    state = torch.get_rng_state()
    first = random_projector(16, 300, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weight, random_projector(16, 300, seed=0).weight)
    assert not torch.equal(first.weight, random_projector(16, 300, seed=1).weight)
    assert first.weight.shape == (300, 16)
    weight_TQ, bias_T = first.weight.detach(), first.bias.detach()
    assert 0.24 < float(weight_TQ.abs().max()) <= 0.25  # 1 / sqrt(16)
    assert float(weight_TQ.var()) == pytest.approx(1 / 16 / 3, rel=0.1)
    assert 0.2 < float(bias_T.abs().max()) <= 0.25
    assert first.weight.requires_grad


@pytest.mark.parametrize("bias", [True, False])
def test_the_source_projector_is_copied_between_equal_widths_only(bias: bool):
    projector = projector_of(4, 5, bias=bias)
    copy = source_projector(projector, 5)
    x_MQ = normal(3, 4, dtype=torch.float64)
    assert torch.equal(copy(x_MQ), projector(x_MQ))
    with torch.no_grad():
        copy.weight.zero_()
    assert projector.weight.abs().min() > 0
    with pytest.raises(ShapeError, match=r"writes 5 and the target LLM reads 6"):
        source_projector(projector, 6)
