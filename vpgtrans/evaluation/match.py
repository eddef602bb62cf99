"""Exact match: what is forgiven, and what is not."""

import re
from collections.abc import Iterable

_SPACE = re.compile(r"\s+")
_CLOSING = " .!?,;:"


def normalise(answer: str) -> str:
    """Return an answer as it is compared: case, runs of whitespace and closing punctuation forgiven.

    ``"  A red  Circle. "`` becomes ``"a red circle"``. Articles, number words and punctuation inside the
    text count; this is not the VQA metric.
    """
    return _SPACE.sub(" ", answer).strip().casefold().rstrip(_CLOSING)


def is_match(answer: str, references: Iterable[str]) -> bool:
    """Tell whether an answer equals any reference after :func:`normalise`."""
    wanted = normalise(answer)
    return any(normalise(reference) == wanted for reference in references)
