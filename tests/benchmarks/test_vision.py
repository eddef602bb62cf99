"""DINOv2 in a stock BLIP-2 vision model: equal to transformers' own DINOv2, layer by layer, in float64."""

from pathlib import Path

import pytest
import torch
from transformers import Blip2VisionModel, Dinov2Model

from benchmarks.real_llms.vision import (
    VitShape,
    blip2_vision_model,
    dinov2_folder,
    largest_difference,
    read_onnx,
    resize_positions,
    to_blip2_state,
)

HIDDEN, LAYERS, GRID, PATCH = 24, 3, 5, 4
SHAPE = VitShape(num_heads=3, patch_size=PATCH, layer_norm_eps=1e-5)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """Random DINOv2 tensors under file names; LayerScale and biases far from one and zero."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape, scale=0.3):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale

    tensors = {
        "embeddings.cls_token": draw(1, 1, HIDDEN),
        "embeddings.position_embeddings": draw(1, 1 + GRID * GRID, HIDDEN),
        "embeddings.patch_embeddings.projection.weight": draw(HIDDEN, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": draw(HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            tensors[f"{prefix}attention.attention.{name}.weight"] = draw(HIDDEN, HIDDEN)
            tensors[f"{prefix}attention.attention.{name}.bias"] = draw(HIDDEN, scale=1.0)
        for name in ("attention.output.dense",):
            tensors[f"{prefix}{name}.weight"] = draw(HIDDEN, HIDDEN)
            tensors[f"{prefix}{name}.bias"] = draw(HIDDEN)
        for name in ("norm1", "norm2"):
            tensors[f"{prefix}{name}.weight"] = 1 + draw(HIDDEN)
            tensors[f"{prefix}{name}.bias"] = draw(HIDDEN)
        for name in ("layer_scale1", "layer_scale2"):
            tensors[f"{prefix}{name}.lambda1"] = 0.7 + draw(HIDDEN)
        tensors[f"{prefix}mlp.fc1.weight"] = draw(4 * HIDDEN, HIDDEN)
        tensors[f"{prefix}mlp.fc1.bias"] = draw(4 * HIDDEN)
        tensors[f"{prefix}mlp.fc2.weight"] = draw(HIDDEN, 4 * HIDDEN)
        tensors[f"{prefix}mlp.fc2.bias"] = draw(HIDDEN)
    return tensors


@pytest.fixture(scope="module")
def dinov2(state, tmp_path_factory) -> Dinov2Model:
    folder = dinov2_folder(state, tmp_path_factory.mktemp("dinov2"), SHAPE)
    model, info = Dinov2Model.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model.eval()


def images(grid: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(grid)
    return torch.randn(2, 3, grid * PATCH, grid * PATCH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_layers", [1, LAYERS])
def test_every_layer_equals_dinov2(state, dinov2, num_layers):
    model = blip2_vision_model(state, num_layers, GRID * PATCH, SHAPE)
    assert isinstance(model, Blip2VisionModel)
    differences = largest_difference(dinov2, model, images(GRID))
    assert len(differences) == num_layers + 1
    assert max(differences) < 1e-10
    spread = dinov2(images(GRID), output_hidden_states=True).hidden_states[-1].std()
    assert spread > 0.1  # something to compare


@pytest.mark.parametrize("grid", [3, 7])
def test_another_image_size_equals_dinov2(state, dinov2, grid):
    model = blip2_vision_model(state, LAYERS, grid * PATCH, SHAPE)
    assert model.embeddings.position_embedding.shape == (1, 1 + grid * grid, HIDDEN)
    # DINOv2 interpolates in float32 whatever its dtype
    assert max(largest_difference(dinov2, model, images(grid))) < 1e-6


def test_a_lost_layer_scale_or_value_bias_shows(state, dinov2):
    for name in ("layer_scale2.lambda1", "attention.attention.value.bias"):
        broken = {**state, f"encoder.layer.1.{name}": torch.ones(HIDDEN, dtype=torch.float64)}
        model = blip2_vision_model(broken, LAYERS, GRID * PATCH, SHAPE)
        assert max(largest_difference(dinov2, model, images(GRID))) > 1e-2


def test_the_key_bias_is_all_that_is_left_out(state):
    new = to_blip2_state(state, LAYERS, GRID)
    bias = new["encoder.layers.2.self_attn.qkv.bias"]
    assert torch.equal(bias[:HIDDEN], state["encoder.layer.2.attention.attention.query.bias"])
    assert torch.equal(bias[HIDDEN : 2 * HIDDEN], torch.zeros(HIDDEN, dtype=torch.float64))
    assert torch.equal(bias[2 * HIDDEN :], state["encoder.layer.2.attention.attention.value.bias"])


def test_the_norm_after_the_encoder_starts_plain(state):
    norm = blip2_vision_model(state, 1, GRID * PATCH, SHAPE).post_layernorm
    assert torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert torch.equal(norm.bias, torch.zeros_like(norm.bias))


def test_positions_keep_the_class_row_and_their_order():
    rows = torch.arange(16, dtype=torch.float64).reshape(1, 16, 1)
    positions = torch.cat([torch.full((1, 1, 1), -5.0, dtype=torch.float64), rows], dim=1)
    assert torch.equal(resize_positions(positions, 4), positions)
    smaller = resize_positions(positions, 2)
    assert smaller.shape == (1, 5, 1)
    assert smaller[0, 0, 0] == -5.0
    # bicubic keeps a plane a plane: columns differ by half of what rows differ by, times 4
    assert smaller[0, 3, 0] - smaller[0, 1, 0] == pytest.approx(
        4 * float(smaller[0, 2, 0] - smaller[0, 1, 0])
    )


def test_an_image_size_between_patches_is_refused(state):
    with pytest.raises(ValueError, match="21 is no multiple of the patch size 4"):
        blip2_vision_model(state, 1, 21, SHAPE)


def test_an_exported_graph_gives_its_names_back(state, tmp_path):
    """Build a graph as an exporter writes it: weights transposed and nameless, biases named."""
    path = write_graph(state, tmp_path / "vit.onnx")
    found = read_onnx(path)
    assert found.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(found[name], value.float()), name


def write_graph(state: dict[str, torch.Tensor], path: Path) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def constant(name, value):
        return numpy_helper.from_array(value.float().contiguous().numpy(), name)

    constants, nodes = [], []
    positions = state["embeddings.position_embeddings"]
    constants.append(constant("onnx::Reshape_2", positions[:, 1:]))
    constants.append(constant("onnx::Concat_1", positions[:, :1]))
    for name, value in state.items():
        linear = name.endswith(".weight") and value.dim() == 2
        if name == "embeddings.position_embeddings":
            continue
        if not linear:
            constants.append(constant(f"backbone.{name}", value))
            continue
        number = len(nodes)
        constants.append(constant(f"onnx::MatMul_{number}", value.T))
        bias = f"backbone.{name.removesuffix('weight')}bias"
        product = f"/product_{number}"
        nodes.append(helper.make_node("MatMul", ["/input", f"onnx::MatMul_{number}"], [product]))
        operands = [bias, product] if number % 2 else [product, bias]
        nodes.append(helper.make_node("Add", operands, [f"/sum_{number}"]))
    constants.append(constant("decoder.conv.weight", torch.ones(2, 2)))
    inputs = [helper.make_tensor_value_info("/input", TensorProto.FLOAT, None)]
    outputs = [helper.make_tensor_value_info("/sum_0", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "vit", inputs, outputs, initializer=constants)
    onnx.save(helper.make_model(graph), str(path))
    return path
