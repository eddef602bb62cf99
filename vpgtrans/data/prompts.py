"""From one text to token ids and labels, once for training, generation and preview alike.

A template divides each text into a prompt's side and an answer's side (``vpgtrans.data.templates``).
Loss stands on the answer's side alone, by construction: never by comparing with the pad id.
"""

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vpgtrans import recipe as recipes
from vpgtrans.data.records import TextPair
from vpgtrans.data.templates import parse_template
from vpgtrans.errors import DataError, RecipeError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNSUPERVISED = -100
LAYOUTS = ("bos-image-text", "image-bos-text", "image-text")
_CLOSING = (".", "!", "?", '"', "'", ")", "%")
"""Signs that some tokenizers join with a newline after them into one token."""


@dataclass(frozen=True)
class Encoded:
    """One text as a model sees it.

    Causal: ``labels`` stand at the places of ``input_ids`` (image places included), -100 where
    there is no loss. Encoder-decoder: ``input_ids`` are the encoder's, ``labels`` the decoder's.
    """

    input_ids: list[int]
    labels: list[int]


class PromptEncoder:
    """Turn texts into ids and labels for one tokenizer, one layout and one recipe."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        image_token_id: int,
        num_image_tokens: int,
        layout: str,
        prompt: recipes.Prompt,
        is_encoder_decoder: bool,
    ) -> None:
        """Settle the layout and what ends an answer.

        Args:
            tokenizer: The LLM's.
            image_token_id: Stands at each place of the soft prompt.
            num_image_tokens: Length of the soft prompt.
            layout: One of ``LAYOUTS``; a tokenizer without BOS, and an encoder-decoder LLM, get
                ``image-text`` whatever is asked.
            prompt: The recipe's section.
            is_encoder_decoder: Whether the answer goes to a decoder of its own (T5).

        Raises:
            RecipeError: An unknown or unsettled layout, a broken template, or no way to end an answer.
        """
        if layout not in LAYOUTS:
            raise RecipeError(f"prompt layout {layout!r} is not settled; choose one of {', '.join(LAYOUTS)}")
        parse_template(prompt.template)
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.num_image_tokens = num_image_tokens
        self.prompt = prompt
        self.is_encoder_decoder = is_encoder_decoder
        self._image_text = _added_token(tokenizer, image_token_id)
        self._lock = threading.Lock()  # fast tokenizers refuse two borrowers at once
        bos = tokenizer.bos_token_id
        self.layout = "image-text" if bos is None or is_encoder_decoder else layout
        """The layout in effect."""
        images = [image_token_id] * num_image_tokens
        self._lead: list[int] = {
            "bos-image-text": [bos, *images],
            "image-bos-text": [*images, bos],
            "image-text": images,
        }[self.layout]
        self.ends_with_text = not is_encoder_decoder and self._can_say(prompt.answer_end)
        """False: answers end with the tokenizer's EOS, asked for or because it cannot say ``answer_end``."""
        if not self.ends_with_text and tokenizer.eos_token_id is None:
            raise RecipeError(
                f"prompt.answer_end {prompt.answer_end!r} cannot end an answer here: the tokenizer has no "
                "end-of-sequence token; give text that it can encode"
            )
        self._end_text = prompt.answer_end if self.ends_with_text else ""
        self._eos: list[int] = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
        self.answer_end_ids = self._end_after("a") if self.ends_with_text else list(self._eos)
        """Token ids that end an answer in training."""
        self.stop_ids = self._stop_ids()
        """Ids at which generation stops: EOS, and the tokens that hold the whole ``answer_end``."""

    def encode(self, pair: TextPair, name: str | None = None) -> Encoded:
        """Encode one text for training; ``name`` stands in the error message.

        Raises:
            DataError: No token of the answer is left to train on, or the text holds the image token.
        """
        prompt, answer = self._sides(pair, name)
        if not pair.answer.strip():
            raise DataError(f"{self._named(pair, name)} has an empty answer: nothing to train on")
        if self.is_encoder_decoder:
            encoded = self._encode_two_sided(prompt, answer)
            answered = len(encoded.labels) > 1
        else:
            encoded, answered = self._encode_causal(prompt, answer)
        if not answered:
            raise DataError(
                f"{self._named(pair, name)} has no answer token left within prompt.max_text_tokens "
                f"{self.prompt.max_text_tokens}: shorten its prompt or raise the limit"
            )
        return encoded

    def encode_prompt(self, pair: TextPair, name: str | None = None) -> list[int]:
        """Encode what generation starts from: training's ids up to the first one with loss.

        Raises:
            DataError: The prompt holds the image token.
        """
        prompt, _ = self._sides(pair, name)
        ids = self._ids(prompt)
        if self.is_encoder_decoder:
            return [*self._lead, *ids[: self.prompt.max_text_tokens - 1], *self._eos]
        return [*self._lead, *ids]

    def decode_answer(self, ids: list[int]) -> str:
        """Turn generated ids into an answer: cut where it ends, without special tokens."""
        stops = set(self._eos)
        cut = next((place for place, token in enumerate(ids) if token in stops), len(ids))
        width = len(self.answer_end_ids)
        ends = (place for place in range(cut) if ids[place : place + width] == self.answer_end_ids)
        cut = min(next(ends, cut), cut)
        with self._lock:
            text = str(self.tokenizer.decode(ids[:cut], skip_special_tokens=True))
        if self._end_text:  # it may also hide inside a longer token
            text = text.split(self._end_text, 1)[0]
        return text.strip()

    def _sides(self, pair: TextPair, name: str | None) -> tuple[str, str]:
        template = parse_template(self.prompt.template if pair.template is None else pair.template)
        prompt, answer = template.sides(pair)
        if self._image_text is not None and self._image_text in prompt + answer:
            raise DataError(f"{self._named(pair, name)} contains {self._image_text!r} as text: remove it")
        return prompt, answer

    def _named(self, pair: TextPair, name: str | None) -> str:
        if name is not None:
            return f"text {name}"
        shown = pair.answer if len(pair.answer) <= 60 else pair.answer[:57] + "..."
        return f"text {shown!r}"

    def _encode_two_sided(self, prompt: str, answer: str) -> Encoded:
        limit = self.prompt.max_text_tokens - 1
        inputs = [*self._lead, *self._ids(prompt)[:limit], *self._eos]
        return Encoded(inputs, [*self._ids(answer.strip())[:limit], *self._eos])

    def _encode_causal(self, prompt: str, answer: str) -> tuple[Encoded, bool]:
        """Encode for a causal LLM; the flag says whether an answer token is among the labels."""
        end = self.answer_end_ids
        ids, num_prompt = self._spans(prompt, answer + self._end_text)
        if not self.ends_with_text:
            ids = [*ids, *end]
        limit = self.prompt.max_text_tokens
        if len(ids) > limit:
            ids = [*ids[: max(limit - len(end), 0)], *end]
        num_answer = len(ids) - num_prompt
        if ids[len(ids) - len(end) :] == end:  # else the end hides in a longer token
            num_answer -= len(end)
        masked = len(self._lead) + num_prompt
        inputs = [*self._lead, *ids]
        return Encoded(inputs, [UNSUPERVISED] * masked + inputs[masked:]), num_answer > 0

    def _spans(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """Return the text's ids and how many of them are prompt."""
        together = self._tokenize_together(prompt, answer)
        if together is not None:
            return together
        prompt_ids = self._ids(prompt)
        return [*prompt_ids, *self._ids(answer)], len(prompt_ids)

    def _tokenize_together(self, prompt: str, answer: str) -> tuple[list[int], int] | None:
        """Tokenise both sides in one go; None where that would differ from generation's prompt."""
        if not self.tokenizer.is_fast:
            return None
        with self._lock:
            both = self.tokenizer(prompt + answer, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = list(both["input_ids"])
        prompt_ids = self._ids(prompt)
        num_prompt = len(prompt_ids)
        if ids[:num_prompt] != prompt_ids:
            return None
        if any(end > len(prompt) for _, end in both["offset_mapping"][:num_prompt]):
            return None  # a token reaches over the border
        if any(start < end <= len(prompt) for start, end in both["offset_mapping"][num_prompt:]):
            return None  # part of the prompt would carry loss
        return ids, num_prompt

    def _ids(self, text: str) -> list[int]:
        with self._lock:
            return list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _decode(self, ids: list[int]) -> str:
        with self._lock:
            decoded: Any = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return str(decoded)

    def _can_say(self, end: str) -> bool:
        """Tell whether the tokenizer keeps ``end`` when it stands after a word."""
        if not end:
            return False
        ids = self._end_after("a", end)
        unknown = self.tokenizer.unk_token_id
        if not ids or (unknown is not None and unknown in ids and unknown != self.tokenizer.eos_token_id):
            return False
        return bool(end.strip()) or self._decode(self._ids("a" + end)).endswith(end)

    def _end_after(self, word: str, end: str | None = None) -> list[int]:
        """Return the ids that ``end`` adds after ``word``."""
        end = self.prompt.answer_end if end is None else end
        alone, both = self._ids(word), self._ids(word + end)
        return both[len(alone) :] if both[: len(alone)] == alone else self._ids(end)

    def _stop_ids(self) -> list[int]:
        stops = list(self._eos)
        if self.ends_with_text:
            if len(self.answer_end_ids) == 1:
                stops.insert(0, self.answer_end_ids[0])
            for sign in _CLOSING:
                last = self._ids("a" + sign + self._end_text)[-1:]
                if last and self._decode(last).endswith(sign + self._end_text):
                    stops.extend(last)
        return list(dict.fromkeys(stops))


def _added_token(tokenizer: "PreTrainedTokenizerBase", token_id: int) -> str | None:
    """Return the text that the tokenizer turns into this id wherever it stands, if there is one."""
    token = tokenizer.added_tokens_decoder.get(token_id)
    return None if token is None else str(token.content)
