"""A projector in closed form from captions: no source LLM, no gradient step (guide methods.md A8).

Cached VPG outputs are regressed, by ridge, on the target LLM's own embeddings of the captions. It fits
any VPG, also one without a projector to inherit; on top of a fused converter it learns what that leaves.

Dimension key: N = query tokens, Q = VPG output width, T = target-LLM width, L = tokens of one caption,
R = rows (queries of several images).
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Literal

import torch
from torch import Tensor, nn

from vpgtrans.alignment import closed_form
from vpgtrans.alignment.fusion import linear_layer
from vpgtrans.errors import DataError, ShapeError
from vpgtrans.progress import SILENT, Progress

Assignment = Literal["position", "mean"]
CHUNK_IMAGES = 64


@torch.no_grad()
def projector_from_captions(
    vpg_outputs_INQ: Iterable[Tensor],
    caption_embeddings: Iterable[Tensor],
    newline_T: Tensor,
    ridge: float,
    base: nn.Linear | None = None,
    assignment: Assignment = "position",
    progress: Progress = SILENT,
) -> nn.Linear:
    """Regress VPG outputs on embeddings of the captions and return the projector.

    Streams over images: only the moments (Q, Q) and (Q, T) are held. The result shrinks towards the mean
    embedding, and its scale is not yet the LLM's: follow it with ``calibrate_search``.

    Args:
        vpg_outputs_INQ: one (N, Q) an image, as a tensor or any stream.
        caption_embeddings: one (L, T) an image, in the space of ``get_input_embeddings()(ids)``. An image
            with several captions stands in both streams several times.
        newline_T: embedding of what ends an answer, for the queries after the last token.
        ridge: strength relative to the mean variance of a VPG output coordinate; 0: least squares.
        base: projector (T, Q), calibrated; then what it leaves is regressed, and the sum is returned.
        assignment: ``position``: query q learns caption token q; ``mean``: every query learns the mean of
            the caption's tokens.
        progress: told of every image.

    Returns:
        Weight (T, Q) and bias (T,), trainable, in the dtype and on the device of ``base``; without it
        at least float32, where the VPG outputs are.

    Raises:
        DataError: if there are no images, a caption has no tokens, or one stream is longer.
        ShapeError: if widths differ within a stream, or from ``base``.
    """
    moments: closed_form.Moments | None = None
    with progress.task("regress captions", unit="images") as task:
        for inputs_RQ, goals_RT, images in _chunks(
            vpg_outputs_INQ, caption_embeddings, newline_T, assignment
        ):
            if base is not None:
                goals_RT = goals_RT - _project(base, inputs_RQ, goals_RT.shape[1])
            if moments is None:
                moments = closed_form.Moments(inputs_RQ.mean(0), goals_RT.mean(0))
            moments.add(inputs_RQ, goals_RT, inputs_RQ.new_ones(len(inputs_RQ)))
            task.advance(images)
    if moments is None:
        raise DataError("no image with a caption to make a projector from; is data.train empty?")
    weight_TQ, bias_T = closed_form.ridge(moments, ridge)
    device, dtype = weight_TQ.device, torch.promote_types(newline_T.dtype, torch.float32)
    if base is not None:
        weight_TQ, bias_T = weight_TQ + base.weight.to(weight_TQ), bias_T + _bias(base).to(bias_T)
        device, dtype = base.weight.device, base.weight.dtype
    return linear_layer(weight_TQ.to(device, dtype), bias_T.to(device, dtype)).requires_grad_(True)


def _chunks(
    outputs: Iterable[Tensor], captions: Iterable[Tensor], newline_T: Tensor, assignment: Assignment
) -> Iterator[tuple[Tensor, Tensor, int]]:
    """Yield inputs (R, Q), goals (R, T), float64, and how many images they come from."""
    inputs: list[Tensor] = []
    goals: list[Tensor] = []
    width_q: int | None = None
    for number, (output_NQ, caption_LT) in enumerate(_together(outputs, captions)):
        width_q = width_q or output_NQ.shape[1]
        _check_image(number, output_NQ, caption_LT, width_q, len(newline_T))
        inputs.append(output_NQ.double())
        goals.append(_goals(caption_LT, newline_T, len(output_NQ), assignment).to(inputs[-1]))
        if len(inputs) == CHUNK_IMAGES:
            yield torch.cat(inputs), torch.cat(goals), len(inputs)
            inputs, goals = [], []
    if inputs:
        yield torch.cat(inputs), torch.cat(goals), len(inputs)


def _goals(caption_LT: Tensor, newline_T: Tensor, queries: int, assignment: Assignment) -> Tensor:
    if assignment == "mean":
        return caption_LT.mean(0).expand(queries, -1)
    first_LT = caption_LT[:queries]
    return torch.cat([first_LT, newline_T.to(first_LT).expand(queries - len(first_LT), -1)])


def _together(outputs: Iterable[Tensor], captions: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    missing = object()
    for output_NQ, caption_LT in zip_longest(outputs, captions, fillvalue=missing):
        if not isinstance(output_NQ, Tensor) or not isinstance(caption_LT, Tensor):
            raise DataError("captions and cached VPG outputs differ in number; both need one entry a pair")
        yield output_NQ, caption_LT


def _check_image(number: int, output_NQ: Tensor, caption_LT: Tensor, width_q: int, width_t: int) -> None:
    if len(caption_LT) == 0:
        raise DataError(f"caption {number} (counted from 0) has no tokens")
    if caption_LT.shape[1] != width_t:
        raise ShapeError(
            f"caption {number} has embeddings of width {caption_LT.shape[1]}, the newline one of {width_t}"
        )
    if output_NQ.shape[1] != width_q:
        raise ShapeError(f"VPG output {number} has width {output_NQ.shape[1]}, those before {width_q}")


def _project(base: nn.Linear, inputs_RQ: Tensor, width_t: int) -> Tensor:
    if (base.in_features, base.out_features) != (inputs_RQ.shape[1], width_t):
        raise ShapeError(
            f"the base projector goes from width {base.in_features} to {base.out_features}, VPG outputs and "
            f"caption embeddings have {inputs_RQ.shape[1]} and {width_t}"
        )
    return inputs_RQ @ base.weight.to(inputs_RQ).T + _bias(base).to(inputs_RQ)


def _bias(layer: nn.Linear) -> Tensor:
    return layer.weight.new_zeros(layer.out_features).double() if layer.bias is None else layer.bias.double()
