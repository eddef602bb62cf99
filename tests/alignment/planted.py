"""Embedding tables with a known relation between them."""

from typing import Any

import torch
from torch import Tensor

from vpgtrans import recipe
from vpgtrans.alignment.anchors import Anchors
from vpgtrans.alignment.rows import AnchorRows
from vpgtrans.alignment.tables import EmbeddingTable


def table(rows_VD: Tensor, model: str = "some-llm") -> EmbeddingTable:
    return EmbeddingTable(rows_VD, model, "opt", 1.0, "embed_tokens.weight")


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def uniform_weights(number: int, seed: int = 9) -> Tensor:
    return torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1


def related_rows(
    number: int,
    width_s: int,
    width_t: int,
    noise: float = 0.0,
    mean: float = 1.0,
    seed: int = 0,
    weights: Tensor | None = None,
) -> tuple[AnchorRows, Tensor, Tensor]:
    """Return anchors with ``y = W x + b + noise``, float64 tables, and W (T, S) and b (T,).

    Ids are a shuffle of longer tables, so that rows and ids differ.
    """
    source_VS = normal(number + 7, width_s, seed=seed, dtype=torch.float64) + mean
    weight_TS = normal(width_t, width_s, seed=seed + 1, dtype=torch.float64)
    bias_T = normal(width_t, seed=seed + 2, dtype=torch.float64)
    target_VT = normal(number + 11, width_t, seed=seed + 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed + 4)
    source_ids = torch.randperm(number + 7, generator=generator)[:number]
    target_ids = torch.randperm(number + 11, generator=generator)[:number]
    blur_AT = normal(number, width_t, seed=seed + 5, dtype=torch.float64) * noise
    target_VT[target_ids] = source_VS[source_ids] @ weight_TS.T + bias_T + blur_AT
    if weights is None:
        weights = torch.ones(number, dtype=torch.float64)
    return AnchorRows(source_VS, target_VT, source_ids, target_ids, weights), weight_TS, bias_T


def gathered(rows: AnchorRows) -> tuple[Tensor, Tensor]:
    return rows.source_VS[rows.source_ids], rows.target_VT[rows.target_ids]


def as_tables(rows: AnchorRows) -> tuple[EmbeddingTable, EmbeddingTable, Anchors]:
    """Return the same as float32 tables and anchors, every third token no word start."""
    word_start = torch.arange(len(rows)) % 3 != 0
    anchors = Anchors(rows.source_ids, rows.target_ids, word_start)
    return table(rows.source_VS.float(), "the-source"), table(rows.target_VT.float(), "the-target"), anchors


def spec(**fields: Any) -> recipe.Converter:
    return recipe.Converter(**fields)
