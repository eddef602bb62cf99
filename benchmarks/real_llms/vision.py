"""A real ViT in a stock BLIP-2 vision model: DINOv2 rewritten exactly, nothing retrained.

``Blip2VisionModel`` is a plain pre-norm ViT, so a DINOv2 fits after three exact rewrites:

* LayerScale multiplies what a branch writes into the residual stream, so it folds into the rows of
  the branch's last linear (attention output, second MLP linear);
* BLIP-2's attention has one fused ``qkv`` whose key part carries no bias. A key bias adds the same
  number to all logits of one query, which softmax does not see: it is dropped;
* the position embeddings are interpolated once, for the image size that is used from then on.

Only the first ``num_layers`` layers are kept: the middle layers of this checkpoint are the better
features (it was tuned for saliency). ``post_layernorm`` (the recipe part ``vision_norm``) starts as
weight 1, bias 0 and is trained with the VPG.

Letters in names: H hidden width, P patches.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Blip2VisionConfig, Blip2VisionModel

IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
"""ImageNet statistics, as DINOv2 was trained with."""


@dataclass(frozen=True)
class VitShape:
    """What the tensors of a ViT do not say about themselves."""

    num_heads: int = 6
    patch_size: int = 14
    layer_norm_eps: float = 1e-6


def read_onnx(path: Path, prefix: str = "backbone.") -> dict[str, Tensor]:
    """Read a ViT's weights out of an exported ONNX graph.

    Export renames the weight of every linear to an anonymous, transposed constant. Its name is
    recovered from the bias that is added to the product; the position embeddings are the two
    anonymous constants of shape (1, 1, H) and (1, P, H).

    Args:
        path: The ``.onnx`` file.
        prefix: What stands in front of the ViT's own names.

    Returns:
        Tensors under the names that Hugging Face files use for a DINOv2.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    constants = {
        item.name: torch.from_numpy(numpy_helper.to_array(item).copy()) for item in graph.initializer
    }
    state = {name.removeprefix(prefix): value for name, value in constants.items() if name.startswith(prefix)}
    biases = {
        output: name
        for node in graph.node
        if node.op_type == "Add"
        for name in node.input
        if name.startswith(prefix)
        for output in node.input
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.output[0] in biases and node.input[1] in constants:
            bias = biases[node.output[0]].removeprefix(prefix)
            state[bias.removesuffix("bias") + "weight"] = constants[node.input[1]].T.contiguous()
    width = state["embeddings.cls_token"].shape[-1]
    anonymous = [
        value
        for name, value in constants.items()
        if name.startswith("onnx::") and value.dim() == 3 and value.shape[0] == 1 and value.shape[2] == width
    ]
    state["embeddings.position_embeddings"] = torch.cat(sorted(anonymous, key=lambda t: t.shape[1]), dim=1)
    return state


def resize_positions(positions_1PH: Tensor, grid: int) -> Tensor:
    """Interpolate position embeddings to another grid, as DINOv2 does (bicubic).

    Args:
        positions_1PH: (1, 1 + P, H), the class position first.
        grid: Patches along one side of the new image.

    Returns:
        (1, 1 + grid * grid, H)
    """
    old_grid = round((positions_1PH.shape[1] - 1) ** 0.5)
    if old_grid == grid:
        return positions_1PH
    width = positions_1PH.shape[2]
    patches = positions_1PH[:, 1:].reshape(1, old_grid, old_grid, width).permute(0, 3, 1, 2).float()
    patches = functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    patches = patches.permute(0, 2, 3, 1).reshape(1, grid * grid, width).to(positions_1PH.dtype)
    return torch.cat([positions_1PH[:, :1], patches], dim=1)


def to_blip2_state(state: Mapping[str, Tensor], num_layers: int, grid: int) -> dict[str, Tensor]:
    """Rewrite DINOv2 tensors as ``Blip2VisionModel`` tensors.

    Args:
        state: DINOv2 tensors under their file names.
        num_layers: How many layers to keep, from the bottom.
        grid: Patches along one side of the image.

    Returns:
        A complete state dict; ``post_layernorm`` is weight 1, bias 0.
    """
    width = state["embeddings.cls_token"].shape[-1]
    new = {
        "embeddings.class_embedding": state["embeddings.cls_token"],
        "embeddings.position_embedding": resize_positions(state["embeddings.position_embeddings"], grid),
        "post_layernorm.weight": torch.ones_like(state["encoder.layer.0.norm1.weight"]),
        "post_layernorm.bias": torch.zeros_like(state["encoder.layer.0.norm1.bias"]),
    }
    for part in ("weight", "bias"):
        name = f"embeddings.patch_embeddings.projection.{part}"
        new[f"embeddings.patch_embedding.{part}"] = state[name]
    for index in range(num_layers):
        layer = _layer(state, f"encoder.layer.{index}.", width)
        new.update({f"encoder.layers.{index}.{name}": value for name, value in layer.items()})
    return {name: value.clone() for name, value in new.items()}


def _layer(state: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, Tensor]:
    """Rewrite one transformer layer."""

    def get(name: str) -> Tensor:
        return state[prefix + name]

    scale_attention, scale_mlp = get("layer_scale1.lambda1"), get("layer_scale2.lambda1")
    query, key, value = (f"attention.attention.{name}." for name in ("query", "key", "value"))
    new = {
        "self_attn.qkv.weight": torch.cat([get(name + "weight") for name in (query, key, value)]),
        "self_attn.qkv.bias": torch.cat(
            [get(query + "bias"), torch.zeros_like(scale_attention), get(value + "bias")]
        ),
        "self_attn.projection.weight": scale_attention[:, None] * get("attention.output.dense.weight"),
        "self_attn.projection.bias": scale_attention * get("attention.output.dense.bias"),
        "mlp.fc2.weight": scale_mlp[:, None] * get("mlp.fc2.weight"),
        "mlp.fc2.bias": scale_mlp * get("mlp.fc2.bias"),
    }
    if new["self_attn.projection.weight"].shape[0] != width:
        raise ValueError(f"{prefix}attention.output has {scale_attention.shape[0]} rows, expected {width}")
    for part in ("weight", "bias"):
        new[f"mlp.fc1.{part}"] = get(f"mlp.fc1.{part}")
        new[f"layer_norm1.{part}"] = get(f"norm1.{part}")
        new[f"layer_norm2.{part}"] = get(f"norm2.{part}")
    return new


def blip2_vision_config(
    state: Mapping[str, Tensor], num_layers: int, image_size: int, shape: VitShape
) -> Blip2VisionConfig:
    """Describe the rewritten ViT."""
    return Blip2VisionConfig(
        hidden_size=state["embeddings.cls_token"].shape[-1],
        intermediate_size=state["encoder.layer.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=num_layers,
        num_attention_heads=shape.num_heads,
        image_size=image_size,
        patch_size=shape.patch_size,
        hidden_act="gelu",
        layer_norm_eps=shape.layer_norm_eps,
        qkv_bias=True,
    )


def blip2_vision_model(
    state: Mapping[str, Tensor], num_layers: int, image_size: int, shape: VitShape | None = None
) -> Blip2VisionModel:
    """Build the stock vision model from DINOv2 tensors.

    Args:
        state: DINOv2 tensors under their file names.
        num_layers: How many layers to keep.
        image_size: Pixels along one side; a multiple of the patch size.
        shape: Heads, patch size and epsilon; None: ViT-S/14.

    Raises:
        ValueError: if the image size is no multiple of the patch size.
    """
    shape = shape or VitShape()
    if image_size % shape.patch_size:
        raise ValueError(f"image size {image_size} is no multiple of the patch size {shape.patch_size}")
    model = Blip2VisionModel(blip2_vision_config(state, num_layers, image_size, shape))
    model.to(state["embeddings.cls_token"].dtype)
    model.load_state_dict(to_blip2_state(state, num_layers, image_size // shape.patch_size))
    return model.eval()


def dinov2_folder(state: Mapping[str, Tensor], folder: Path, shape: VitShape | None = None) -> Path:
    """Write the same tensors as a stock ``Dinov2Model`` folder, to compare against.

    ``mask_token`` is not in the graph (it is used in pre-training only) and set to zero.
    """
    from safetensors.torch import save_file
    from transformers import Dinov2Config

    shape = shape or VitShape()
    width = state["embeddings.cls_token"].shape[-1]
    grid = round((state["embeddings.position_embeddings"].shape[1] - 1) ** 0.5)
    tensors = {name: value.contiguous() for name, value in state.items()}
    zeros = torch.zeros(1, width, dtype=state["embeddings.cls_token"].dtype)
    tensors.setdefault("embeddings.mask_token", zeros)
    for part, value in (("weight", torch.ones(width)), ("bias", torch.zeros(width))):
        tensors.setdefault(f"layernorm.{part}", value.to(zeros.dtype))
    layers = {int(found[1]) for name in state if (found := re.match(r"encoder\.layer\.(\d+)\.", name))}
    config = Dinov2Config(
        hidden_size=width,
        num_hidden_layers=len(layers),
        num_attention_heads=shape.num_heads,
        mlp_ratio=state["encoder.layer.0.mlp.fc1.weight"].shape[0] // width,
        image_size=grid * shape.patch_size,
        patch_size=shape.patch_size,
        layer_norm_eps=shape.layer_norm_eps,
        architectures=["Dinov2Model"],
    )
    config.save_pretrained(folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@torch.no_grad()
def largest_difference(dinov2: Any, blip2: Blip2VisionModel, pixels_B3XX: Tensor) -> list[float]:
    """Compare the residual stream of both models after every kept layer.

    Args:
        dinov2: A ``Dinov2Model``.
        blip2: The rewritten model.
        pixels_B3XX: (B, 3, X, X) images.

    Returns:
        The largest absolute difference before the first layer and after each layer.
    """
    theirs = dinov2(pixels_B3XX, output_hidden_states=True).hidden_states
    ours: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        ours.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in (blip2.embeddings, *blip2.encoder.layers)]
    try:
        blip2(pixels_B3XX)
    finally:
        for handle in handles:
            handle.remove()
    return [float((a - b).abs().max()) for a, b in zip(theirs, ours, strict=False)]
