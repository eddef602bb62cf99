"""Which call of the stock processor gives exactly the token ids that the model was trained with.

The stock ``Blip2Processor`` puts the image places in front of BOS if it knows their number, and leaves the
text alone if it does not. Tokenizers differ in whether they add BOS by themselves and whether a word
after a special token keeps its leading-space mark, so the calls are tried, plainest first, on the run's
own prompts, and the first that agrees on all of them is what the model card says.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import TextPair
from vpgtrans.data.templates import parse_template
from vpgtrans.vlm.image_token import IMAGE_TOKEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Usage:
    """How a user turns an image and a prompt into the model's inputs."""

    way: str
    num_query_tokens: int | None
    """For ``processor_config.json``: the soft prompt's length, or None where the text spells the places."""
    prefix: str
    """What stands before the prompt in the text."""
    add_special_tokens: bool
    explicit: bool = False
    """No call of the processor agrees: ids are put together by hand."""

    def text(self, prompt: str) -> str:
        """Return the text that the processor is given."""
        return self.prefix + prompt

    def ids(self, tokenizer: "PreTrainedTokenizerBase", encoder: PromptEncoder, prompt: str) -> list[int]:
        """Return what the stock processor makes of ``prompt``, computed with the tokenizer alone."""
        if self.explicit:
            return explicit_ids(encoder, prompt)
        text = list(tokenizer(self.text(prompt), add_special_tokens=self.add_special_tokens)["input_ids"])
        return [encoder.image_token_id] * (self.num_query_tokens or 0) + text


def find_usage(encoder: PromptEncoder, pairs: Sequence[TextPair]) -> Usage:
    """Return the plainest call that agrees with ``encoder`` on all prompts of ``pairs`` and a made-up one."""
    prompts = [
        (prompt_text(encoder, pair), encoder.encode_prompt(pair)) for pair in (template_pair(), *pairs)
    ]
    prompts = [(prompt, ids) for prompt, ids in prompts if not is_cut(encoder, ids)]
    for usage in _candidates(encoder):
        if all(usage.ids(encoder.tokenizer, encoder, prompt) == ids for prompt, ids in prompts):
            return usage
    return Usage("explicit ids", encoder.num_image_tokens, "", add_special_tokens=False, explicit=True)


def prompt_text(encoder: PromptEncoder, pair: TextPair) -> str:
    """Return the text of a prompt as the template makes it."""
    template = encoder.prompt.template if pair.template is None else pair.template
    return parse_template(template).sides(pair)[0]


def template_pair() -> TextPair:
    """Return a made-up text, to try calls on and to show in the card."""
    return TextPair(prompt="what is in the picture?", answer="a dog")


def explicit_ids(encoder: PromptEncoder, prompt: str) -> list[int]:
    """Put the ids together from the layout: what the card's explicit lines do."""
    text = encoder.tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    lead, tail = explicit_frame(encoder)
    return [*lead, *text, *tail]


def explicit_frame(encoder: PromptEncoder) -> tuple[list[int], list[int]]:
    """Return the ids before and after a prompt's own."""
    images = [encoder.image_token_id] * encoder.num_image_tokens
    bos = [encoder.tokenizer.bos_token_id]
    lead = {"bos-image-text": bos + images, "image-bos-text": images + bos, "image-text": images}
    tail = [encoder.tokenizer.eos_token_id] if encoder.is_encoder_decoder else []
    return lead[encoder.layout], [token for token in tail if token is not None]


def is_cut(encoder: PromptEncoder, ids: list[int]) -> bool:
    """Tell whether an encoder-decoder prompt was shortened in training, which the processor never does."""
    return (
        encoder.is_encoder_decoder and len(ids) >= encoder.num_image_tokens + encoder.prompt.max_text_tokens
    )


def _candidates(encoder: PromptEncoder) -> list[Usage]:
    """List the calls worth trying, plainest first."""
    number = encoder.num_image_tokens
    places = IMAGE_TOKEN * number
    bos = encoder.tokenizer.bos_token or ""
    in_front = [Usage("stock order", number, "", True), Usage("stock order", number, "", False)]
    if bos:
        in_front += [Usage("stock order, BOS spelled", number, bos + gap, False) for gap in ("", " ")]
    spelled = [
        Usage("places spelled", None, lead + places + gap, special)
        for lead, special in (("", True), (bos, False))
        for gap in ("", " ")
    ]
    return [*in_front, *spelled]


def loading_lines(folder: str, usage: Usage, encoder: PromptEncoder, max_new_tokens: int) -> list[str]:
    """Return the lines of Python that load the model, describe ``photo.jpg`` and print the answer.

    Args:
        folder: What stands in ``from_pretrained``.
        usage: From :func:`find_usage`.
        encoder: Of the run.
        max_new_tokens: Longest answer.
    """
    prompt = prompt_text(encoder, template_pair())
    return [
        *(["import torch"] if usage.explicit else []),
        "from PIL import Image",
        "from transformers import AutoModelForImageTextToText, AutoProcessor",
        "",
        f"model = AutoModelForImageTextToText.from_pretrained({_quoted(folder)})",
        f"processor = AutoProcessor.from_pretrained({_quoted(folder)})",
        "",
        'image = Image.open("photo.jpg").convert("RGB")',
        f"prompt = {_quoted(prompt)}",
        *(_explicit_lines(encoder) if usage.explicit else [_processor_line(usage, encoder)]),
        f"output = model.generate(**inputs, max_new_tokens={max_new_tokens})",
        _decode_line(encoder),
    ]


def _processor_line(usage: Usage, encoder: PromptEncoder) -> str:
    spelled = IMAGE_TOKEN * encoder.num_image_tokens
    if spelled in usage.prefix:
        before, after = usage.prefix.split(spelled)
        pieces = [_quoted(before)] if before else []
        pieces.append(f"{_quoted(IMAGE_TOKEN)} * {encoder.num_image_tokens}")
        pieces += [_quoted(after)] if after else []
        text = " + ".join([*pieces, "prompt"])
    else:
        text = f"{_quoted(usage.prefix)} + prompt" if usage.prefix else "prompt"
    special = "" if usage.add_special_tokens else ", add_special_tokens=False"
    return f'inputs = processor(images=image, text={text}{special}, return_tensors="pt")'


def _explicit_lines(encoder: PromptEncoder) -> list[str]:
    lead, tail = explicit_frame(encoder)
    images = f"[{encoder.image_token_id}] * {encoder.num_image_tokens}"
    bos = encoder.tokenizer.bos_token_id
    spelled = {
        "bos-image-text": f"[{bos}] + {images}",
        "image-bos-text": f"{images} + [{bos}]",
        "image-text": images,
    }[encoder.layout]
    end = f" + {tail}" if tail else ""
    return [
        f"ids = {spelled} + processor.tokenizer(prompt, add_special_tokens=False).input_ids{end}",
        'inputs = {**processor(images=image, return_tensors="pt"), "input_ids": torch.tensor([ids])}',
        'inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])',
    ]


def _decode_line(encoder: PromptEncoder) -> str:
    kept = "output[0]" if encoder.is_encoder_decoder else 'output[0, inputs["input_ids"].shape[1]:]'
    return f"print(processor.decode({kept}, skip_special_tokens=True).strip())"


def _quoted(text: str) -> str:
    """Return a Python literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)
