"""Lay out texts as rows ``[prefix][text 1][text 2]...``, so that what they have in common is computed once.

With a causal LLM a prefix does not depend on what follows it. All texts of an image share the soft prompt,
the BOS and whatever else they begin with; every text restarts its positions after the prefix and attends to
the prefix and itself alone. Several images stand in one row, apart from each other in the same way. Loss
and gradients are those of the separate texts exactly. A token after the last supervised one, and the last
supervised one itself, predict nothing and are left out.

Shapes: B texts, R rows, T tokens of a row, S segments (a prefix with its texts), M labels, P places whose
logits are needed (several texts may continue from one place).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from vpgtrans.data.batches import Batch

IGNORED = -100
"""Label of a token without loss."""
MAX_ROW_TOKENS = 512
"""An image whose texts need more is split over several rows, each with the prefix."""
_QUADRATIC_TOKENS = 800
"""Length of a row at which its attention costs about as much as its other layers (measured on CPU)."""


@dataclass(frozen=True)
class Text:
    """One text with its image: token ids (image places included) and labels at the same places."""

    image: int
    ids: Sequence[int]
    labels: Sequence[int]


@dataclass(frozen=True)
class PackedRows:
    """Texts as rows of an LLM's input."""

    input_ids: Tensor
    """(R, T) int64."""
    position_ids: Tensor
    """(R, T) int64: restarting after the prefix for every text; 0 on padding."""
    segment: Tensor
    """(R, T) int64: which segment a token belongs to, counted from 1; 0 on padding."""
    text: Tensor
    """(R, T) int64: which text of the segment, counted from 1; 0 in the prefix."""
    image_index: Tensor
    """(S,) int64: the image of each segment, in the order in which they stand in the rows."""
    places: Tensor
    """(P,) int64: row * T + column of the tokens whose logits are needed, each once."""
    place_of_label: Tensor
    """(M,) int64: which of the places predicts a label."""
    labels: Tensor
    """(M,) int64."""
    max_position: int

    def to(self, device: torch.device) -> "PackedRows":
        """Return the rows on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


_Member = tuple[Sequence[int], list[tuple[int, int]]]
"""The tokens of a text that are read, and (token that predicts, label) of those with loss."""


@dataclass(frozen=True)
class _Segment:
    """A prefix with the texts that continue it."""

    image: int
    prefix: Sequence[int]
    tails: list[Sequence[int]]
    targets: list[list[tuple[int, int]]]
    """For each text: (token of the text, counted from the prefix's first, that predicts; label)."""

    @property
    def width(self) -> int:
        return len(self.prefix) + sum(len(tail) for tail in self.tails)


def texts_of(batch: "Batch") -> list[Text]:
    """Return a training batch's texts without padding."""
    columns = (batch.image_index, batch.input_ids, batch.labels, batch.attention_mask)
    return [
        Text(
            image,
            [token for token, kept in zip(ids, mask, strict=True) if kept],
            [label for label, kept in zip(labels, mask, strict=True) if kept],
        )
        for image, ids, labels, mask in zip(*(column.tolist() for column in columns), strict=True)
    ]


def pack_texts(
    texts: Sequence[Text], image_token_id: int, max_row_tokens: int = MAX_ROW_TOKENS
) -> PackedRows | None:
    """Lay out texts as packed rows.

    Args:
        texts: in any order; those of one image need not be neighbours.
        image_token_id: stands at the soft prompt's places.
        max_row_tokens: rows longer than that are made only for a single text that is longer.

    Returns:
        The rows on the CPU; None if no text has a supervised token, or one has none behind its image.
    """
    groups: dict[tuple[int, ...], list[_Member]] = {}
    for text in texts:
        targets = [
            (place - 1, label) for place, label in enumerate(text.labels) if place and label != IGNORED
        ]
        if not targets:
            continue
        ids = list(text.ids[: targets[-1][0] + 1])
        lead = _after_image(text.ids, image_token_id)
        if lead > len(ids):
            return None
        groups.setdefault((text.image, *text.ids[:lead]), []).append((ids, targets))
    segments = [
        segment
        for (image, *_), members in groups.items()
        for segment in _segments(image, members, max_row_tokens)
    ]
    return _rows(_binned(segments, max_row_tokens)) if segments else None


def _after_image(ids: Sequence[int], image_token_id: int) -> int:
    """Return the number of tokens up to and with the last image place."""
    return next((place for place in range(len(ids), 0, -1) if ids[place - 1] == image_token_id), 0)


def _common_beginning(rows: list[Sequence[int]]) -> Sequence[int]:
    """Return what all rows begin with; the smallest and the largest row alone decide."""
    first, last = min(rows, key=list), max(rows, key=list)
    length = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:length]


def _segments(image: int, members: "list[_Member]", max_row_tokens: int) -> list[_Segment]:
    """Divide texts with a common beginning into segments that fit into a row."""
    prefix = _common_beginning([ids for ids, _ in members])
    segments: list[_Segment] = []
    room = 0
    for ids, targets in members:
        tail = ids[len(prefix) :]
        if not segments or len(tail) > room:
            segments.append(_Segment(image, prefix, [], []))
            # repeated prefixes against longer rows: tokens per row at which a text's share is cheapest
            cheapest = math.isqrt(len(prefix) * (len(prefix) + _QUADRATIC_TOKENS))
            room = min(max_row_tokens - len(prefix), cheapest)
        segments[-1].tails.append(tail)
        segments[-1].targets.append(targets)
        room -= len(tail)
    return segments


def _binned(segments: list[_Segment], max_row_tokens: int) -> list[list[_Segment]]:
    """Distribute segments over rows of about equal length, as many rows as cost least."""
    longest_first = sorted(segments, key=lambda segment: -segment.width)
    limit = max(max_row_tokens, longest_first[0].width)
    best: tuple[float, list[list[_Segment]]] | None = None
    fewest = -(-sum(segment.width for segment in segments) // limit)
    for num_rows in range(max(1, fewest), len(segments) + 1):
        rows: list[list[_Segment]] = [[] for _ in range(num_rows)]
        widths = [0] * num_rows
        for segment in longest_first:
            shortest = widths.index(min(widths))
            rows[shortest].append(segment)
            widths[shortest] += segment.width
        width = max(widths)
        cost = num_rows * (width + width * width / _QUADRATIC_TOKENS)
        if width <= limit and (best is None or cost < best[0]):
            best = (cost, rows)
    if best is None:  # one segment a row always fits
        return [[segment] for segment in longest_first]
    return best[1]


def _rows(bins: list[list[_Segment]]) -> PackedRows:
    """Write segments into tensors."""
    width = max(sum(segment.width for segment in row) for row in bins)
    ids, positions, segment_ids, text_ids = (
        torch.zeros(len(bins), width, dtype=torch.long) for _ in range(4)
    )
    places: dict[int, int] = {}
    place_of_label: list[int] = []
    labels: list[int] = []
    images: list[int] = []
    for row, members in enumerate(bins):
        column = 0
        for segment in members:
            images.append(segment.image)
            num_prefix = len(segment.prefix)
            first = column
            for number, piece in enumerate([segment.prefix, *segment.tails]):
                end = column + len(piece)
                start = num_prefix if number else 0
                ids[row, column:end] = torch.tensor(piece, dtype=torch.long)
                positions[row, column:end] = torch.arange(start, start + len(piece))
                segment_ids[row, column:end] = len(images)
                text_ids[row, column:end] = number
                for token, label in segment.targets[number - 1] if number else ():
                    # a label's predecessor stands in the prefix or in the text's own part
                    at = first + token if token < num_prefix else column + token - num_prefix
                    place_of_label.append(places.setdefault(row * width + at, len(places)))
                    labels.append(label)
                column = end
    return PackedRows(
        input_ids=ids,
        position_ids=positions,
        segment=segment_ids,
        text=text_ids,
        image_index=torch.tensor(images),
        places=torch.tensor(list(places)),
        place_of_label=torch.tensor(place_of_label),
        labels=torch.tensor(labels),
        max_position=int(positions.max()),
    )


def block_mask(rows: PackedRows, window: int | None = None) -> Tensor:
    """Return who attends to whom, (R, 1, T, T) bool, queries in front.

    Args:
        rows: packed rows.
        window: of a sliding attention, counted in restarted positions as for the text alone: a token
            attends to itself and the ``window - 1`` tokens before it.
    """
    position_RT = rows.position_ids
    distance_RTT = position_RT[:, :, None] - position_RT[:, None, :]
    same_RTT = rows.segment[:, :, None] == rows.segment[:, None, :]
    keys_R1T, queries_RT1 = rows.text[:, None, :], rows.text[:, :, None]
    seen_RTT = same_RTT & ((keys_R1T == 0) | (keys_R1T == queries_RT1)) & (distance_RTT >= 0)
    if window is not None:
        seen_RTT &= distance_RTT < window
    return seen_RTT[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn a boolean mask into one that is added to scores: every attention implementation takes that."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
