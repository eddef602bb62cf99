"""From pairs to tensors: batches with every image in them once.

Shapes: U unique images of the batch, B texts, T tokens, L decoder tokens.
Training pads on the right, generation on the left; the attention mask says what is padding,
never the pad id.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from vpgtrans.data.order import PairItem, PairOrder
from vpgtrans.data.prompts import UNSUPERVISED, PromptEncoder
from vpgtrans.data.records import Record, TextPair, pair_id

if TYPE_CHECKING:
    import torch

__all__ = ["Batch", "Collator", "FeaturesCut", "PairItem", "PairOrder"]

FeaturesCut = Literal["vision", "vpg"]
"""Where cached features were taken: after the vision encoder, or after the whole VPG."""


@dataclass
class Batch:
    """What one forward pass reads."""

    image_keys: list[str]
    """U names of images."""
    pixel_values: "torch.Tensor | None"
    """(U, 3, H, W) float32, or None where ``features`` stand in for it."""
    features: "torch.Tensor | None"
    """(U, ...) what the frozen parts made of the images."""
    features_cut: FeaturesCut | None
    image_index: "torch.Tensor"
    """(B,) int64: which of the U images a text belongs to."""
    input_ids: "torch.Tensor"
    """(B, T) int64."""
    attention_mask: "torch.Tensor"
    """(B, T) int64: 1 on tokens and soft-prompt places, 0 on padding."""
    labels: "torch.Tensor"
    """(B, T), encoder-decoder (B, L), int64: -100 where there is no loss."""
    pair_ids: list[str]
    """B names of pairs, for messages."""
    num_supervised: int
    """Labels that are not -100."""

    def to(self, device: "torch.device | str") -> "Batch":
        """Return the batch with its tensors on a device."""
        moved = {
            name: value.to(device)
            for name, value in vars(self).items()
            if hasattr(value, "to") and value is not None
        }
        return replace(self, **moved)


class Collator:
    """Make batches: texts to padded ids, images opened once each or taken from a cache."""

    def __init__(
        self,
        encoder: PromptEncoder,
        image_processor: Any,
        features: "Callable[[Record], torch.Tensor] | None" = None,
        features_cut: FeaturesCut | None = None,
    ) -> None:
        """Remember where texts and images are turned into tensors.

        Args:
            encoder: Of texts.
            image_processor: Hugging Face's: ``image_processor(images=[...], return_tensors="pt")``.
            features: Gives a record's cached features; images are then not opened.
            features_cut: Where those features were taken; given exactly when ``features`` is.
        """
        if (features is None) != (features_cut is None):
            raise ValueError("'features' and 'features_cut' go together")
        self.encoder = encoder
        self.image_processor = image_processor
        self.features = features
        self.features_cut = features_cut
        tokenizer = encoder.tokenizer
        ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
        self.pad_id: int = next(token for token in ids if token is not None)
        """Fills the padding; nothing reads it, the attention mask decides."""

    def __call__(
        self,
        pairs: Sequence[tuple[Record, TextPair]],
        *,
        for_generation: bool = False,
        pair_ids: Sequence[str] | None = None,
    ) -> Batch:
        """Make one batch of pairs.

        Args:
            pairs: Records with one of their texts each.
            for_generation: Prompts alone, padded on the left; all labels -100.
            pair_ids: Names for messages; default: record id and place of the text.

        Raises:
            DataError: An image that cannot be read, or a text without supervised tokens.
        """
        import torch

        names = list(pair_ids) if pair_ids is not None else [pair_id(*pair) for pair in pairs]
        unique = {record.image.key: record for record, _ in pairs}
        place = {key: number for number, key in enumerate(unique)}
        if for_generation:
            inputs = [
                self.encoder.encode_prompt(text, name) for (_, text), name in zip(pairs, names, strict=True)
            ]
            labels = [[UNSUPERVISED] * len(ids) for ids in inputs]
        else:
            encoded = [self.encoder.encode(text, name) for (_, text), name in zip(pairs, names, strict=True)]
            inputs = [one.input_ids for one in encoded]
            labels = [one.labels for one in encoded]
        masks = [[1] * len(ids) for ids in inputs]
        label_rows = _padded(labels, UNSUPERVISED, left=for_generation)
        return Batch(
            image_keys=list(unique),
            pixel_values=self._pixels(list(unique.values())) if self.features is None else None,
            features=self._features(list(unique.values())),
            features_cut=self.features_cut,
            image_index=torch.tensor([place[record.image.key] for record, _ in pairs]),
            input_ids=torch.tensor(_padded(inputs, self.pad_id, left=for_generation)),
            attention_mask=torch.tensor(_padded(masks, 0, left=for_generation)),
            labels=torch.tensor(label_rows),
            pair_ids=names,
            num_supervised=sum(label != UNSUPERVISED for row in label_rows for label in row),
        )

    def _pixels(self, records: list[Record]) -> "torch.Tensor":
        images = [record.image.open() for record in records]
        pixels: torch.Tensor = self.image_processor(images=images, return_tensors="pt").pixel_values
        return pixels

    def _features(self, records: list[Record]) -> "torch.Tensor | None":
        import torch

        if self.features is None:
            return None
        return torch.stack([self.features(record) for record in records])


def _padded(rows: list[list[int]], fill: int, *, left: bool) -> list[list[int]]:
    """Fill rows up to the longest."""
    width = max(len(row) for row in rows)
    if left:
        return [[fill] * (width - len(row)) + row for row in rows]
    return [row + [fill] * (width - len(row)) for row in rows]
