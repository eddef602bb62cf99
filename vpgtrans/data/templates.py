"""Templates: which text stands around a prompt and its answer, and where the two sides meet.

Horizontal space directly in front of ``{answer}`` belongs to the answer's side, because tokenizers
bind it to the next word: the prompt that a model is asked to go on from is the text before it,
right-stripped. Newlines stay in the prompt, or an answer could start with what ends answers.
"""

import string
from dataclasses import dataclass
from functools import lru_cache

from vpgtrans.data.records import TextPair
from vpgtrans.errors import RecipeError


@dataclass(frozen=True)
class Template:
    """A parsed template: ``head {prompt} middle {answer} tail``."""

    head: str
    middle: str
    tail: str
    asks: bool
    """Whether ``{prompt}`` stands in it."""

    def sides(self, pair: TextPair) -> tuple[str, str]:
        """Return the prompt's text and the answer's text, the space between them with the answer."""
        middle = self.middle
        if self.asks and not self.head and not pair.prompt.strip():
            middle = middle.lstrip(" \t")  # a gap after nothing is no gap
        before = self.head + (pair.prompt.strip() if self.asks else "") + middle
        prompt = before.rstrip(" \t")
        return prompt, before[len(prompt) :] + pair.answer.strip() + self.tail


@lru_cache(maxsize=256)
def parse_template(text: str) -> Template:
    """Split a template at its fields.

    Raises:
        RecipeError: A field other than ``{prompt}`` and ``{answer}``, no ``{answer}``, one of them
            twice, or ``{prompt}`` after ``{answer}``.
    """
    fields: list[str] = []
    pieces = [""]
    try:
        for literal, name, spec, conversion in string.Formatter().parse(text):
            pieces[-1] += literal
            if name is None:
                continue
            if name not in ("prompt", "answer") or spec or conversion:
                raise RecipeError(
                    f"template {text!r}: unknown field {{{name}}}; known: {{prompt}}, {{answer}}"
                )
            fields.append(name)
            pieces.append("")
    except ValueError as error:
        raise RecipeError(f"template {text!r}: {error}; write {{{{ and }}}} for braces as text") from error
    if fields == ["answer"]:
        return Template("", pieces[0], pieces[1], asks=False)
    if fields == ["prompt", "answer"]:
        return Template(pieces[0], pieces[1], pieces[2], asks=True)
    raise RecipeError(
        f"template {text!r}: it needs {{answer}} once and may have {{prompt}} once before it, "
        f"found {', '.join(fields) or 'no field'}"
    )
