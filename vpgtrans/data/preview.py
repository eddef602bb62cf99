"""A sample as the model sees it, as plain data for ``vpgtrans preview-data``."""

from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, Literal

from vpgtrans.data.prompts import UNSUPERVISED, PromptEncoder
from vpgtrans.data.records import Record, TextPair, pair_id

Role = Literal["image", "special", "prompt", "supervised"]


@dataclass(frozen=True)
class PreviewToken:
    """One token, or all places of the soft prompt together."""

    text: str
    id: int
    role: Role
    """Only ``supervised`` tokens carry loss."""
    count: int = 1


@dataclass(frozen=True)
class Preview:
    """One pair: its image, its tokens, and what is trained."""

    pair_id: str
    image: str
    size: tuple[int, int]
    """Width and height of the image as it lies on disk, in pixels."""
    tokens: tuple[PreviewToken, ...]
    """An encoder-decoder LLM's encoder tokens, then its decoder's."""
    prompt_text: str
    """What generation starts from, as text."""
    supervised_text: str
    """What carries loss, as text."""

    @property
    def num_image(self) -> int:
        """Length of the soft prompt."""
        return sum(token.count for token in self.tokens if token.role == "image")

    @property
    def num_supervised(self) -> int:
        """Tokens with loss."""
        return sum(token.count for token in self.tokens if token.role == "supervised")

    @property
    def num_text(self) -> int:
        """Tokens that are no places of the soft prompt."""
        return sum(token.count for token in self.tokens if token.role != "image")

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        counts = {name: getattr(self, name) for name in ("num_image", "num_text", "num_supervised")}
        return {**asdict(self), **counts}


def preview(encoder: PromptEncoder, record: Record, text: TextPair) -> Preview:
    """Show one pair exactly as training encodes it.

    Raises:
        DataError: The image cannot be read, or the text has nothing to train on.
    """
    name = pair_id(record, text)
    encoded = encoder.encode(text, name)
    if encoder.is_encoder_decoder:
        places = [(token, False) for token in encoded.input_ids] + [(token, True) for token in encoded.labels]
    else:
        places = [
            (token, label != UNSUPERVISED)
            for token, label in zip(encoded.input_ids, encoded.labels, strict=True)
        ]
    return Preview(
        name,
        record.image.key,
        record.image.open().size,
        _tokens(encoder, places),
        encoder.tokenizer.decode(
            [t for t, with_loss in places if not with_loss and t != encoder.image_token_id]
        ),
        encoder.tokenizer.decode([token for token, with_loss in places if with_loss]),
    )


def _tokens(encoder: PromptEncoder, places: list[tuple[int, bool]]) -> tuple[PreviewToken, ...]:
    specials = set(encoder.tokenizer.all_special_ids)
    tokens: list[PreviewToken] = []
    for is_image, run in groupby(places, key=lambda place: place[0] == encoder.image_token_id):
        members = list(run)
        if is_image:
            text = f"<image> x {len(members)}"
            tokens.append(PreviewToken(text, encoder.image_token_id, "image", len(members)))
            continue
        for token, with_loss in members:
            role: Role = "supervised" if with_loss else "special" if token in specials else "prompt"
            tokens.append(PreviewToken(str(encoder.tokenizer.decode([token])), token, role))
    return tuple(tokens)
