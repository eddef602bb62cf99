"""Fuse a word converter into a projector, and what to compare with: the source projector, a random one.

Dimension key: Q = VPG output width, S = source-LLM width, T = target-LLM width.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vpgtrans.errors import ShapeError

if TYPE_CHECKING:
    from vpgtrans.alignment.converter import Converter


def linear_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """Return a linear layer that holds these tensors, without drawing random numbers.

    Args:
        weight: (out, in).
        bias: (out,), same dtype and device.
    """
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


@torch.no_grad()
def fuse(projector: nn.Linear, converter: "Converter") -> nn.Linear:
    """Return the one linear layer equal to ``converter(projector(x))``.

    ``W = W_c W_s`` and ``b = W_c b_s + b_c`` (paper equation 2, in the order in which the shapes fit
    and the authors' code multiplies), computed in float64.

    Args:
        projector: source projector, weight (S, Q); without a bias the converter's becomes the bias.
        converter: word converter, weight (T, S).

    Returns:
        Weight (T, Q) and bias (T,) in the dtype and on the device of the projector, trainable.

    Raises:
        ShapeError: if the two meet at different widths; the usual cause is a converter made for
            another source LLM.
    """
    if converter.weight_TS.shape[1] != projector.out_features:
        raise ShapeError(
            f"the converter expects source width {converter.weight_TS.shape[1]}, the projector writes width "
            f"{projector.out_features}; make the converter for the LLM inside this source model"
        )
    like = projector.weight
    conv_TS = converter.weight_TS.to(like.device, torch.float64)
    bias_T = converter.bias_T.to(like.device, torch.float64)
    if projector.bias is not None:
        bias_T = bias_T + conv_TS @ projector.bias.double()
    fused = linear_layer((conv_TS @ like.double()).to(like.dtype), bias_T.to(like.dtype))
    return fused.requires_grad_(True)


def source_projector(projector: nn.Linear, width: int) -> nn.Linear:
    """Return the source projector unchanged, as a baseline: only between LLMs of one width.

    Args:
        projector: source projector, weight (S, Q).
        width: the target LLM's.

    Raises:
        ShapeError: if the widths differ.
    """
    if projector.out_features != width:
        raise ShapeError(
            f"init.projector source needs LLMs of one width, but the source projector writes "
            f"{projector.out_features} and the target LLM reads {width}; use init.projector converter"
        )
    weight_TQ = projector.weight.detach().clone()
    bias_T = weight_TQ.new_zeros(width) if projector.bias is None else projector.bias.detach().clone()
    return linear_layer(weight_TQ, bias_T).requires_grad_(True)


def random_projector(in_features: int, out_features: int, seed: int) -> nn.Linear:
    """Return a fresh projector as ``nn.Linear`` starts it, from a seed of its own.

    Uniform within ``1/sqrt(in_features)``, as in the authors' code for training from scratch.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = in_features**-0.5
    weight_TQ = torch.empty(out_features, in_features).uniform_(-bound, bound, generator=generator)
    bias_T = torch.empty(out_features).uniform_(-bound, bound, generator=generator)
    return linear_layer(weight_TQ, bias_T).requires_grad_(True)
