"""The model card: what the model is, how to load it, what was trained, what was measured, what does not work.

Front matter as the Hugging Face hub reads it (https://huggingface.co/docs/hub/model-cards).
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
import yaml

from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.export.usage import Usage
from vpgtrans.vlm.assemble import Ported
from vpgtrans.weights.disk import atomic_write_text
from vpgtrans.weights.locate import ModelFiles

CARD_FILE = "README.md"
_VERIFIED = "## Verified"

_NEEDS_5 = {
    "gemma": "Gemma 1 scales its word embeddings elsewhere in transformers 4: answers there are wrong.",
    "gemma2": "Gemma 2 scales its word embeddings elsewhere in transformers 4: answers there are wrong.",
}
"""LLM types whose export only transformers 5 computes rightly (transformers.md 0.7)."""
_NOT_IN_VLLM = frozenset({"gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "falcon", "bloom", "mpt"})
"""LLM types whose vLLM class has no ``.model``, which vLLM's BLIP-2 calls (transformers.md 6.1)."""


@dataclass(frozen=True)
class Lineage:
    """Where the parts came from. Names are public: a local folder's own name, never its path."""

    source: str
    target: str
    model_class: str
    llm_class: str
    llm_type: str
    dtype: str
    vpg_stored: tuple[str, ...]
    licences: Mapping[str, str | None]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        ported: Ported,
        source: ModelFiles,
        target: ModelFiles,
        dtype: str,
        vpg_stored: Set[str],
    ) -> "Lineage":
        """Collect it from the parts."""
        names = {public_name(files): licence_of(files) for files in (source, target)}
        return cls(
            source=public_name(source),
            target=public_name(target),
            model_class=type(ported.model).__name__,
            llm_class=type(ported.llm).__name__,
            llm_type=str(ported.llm.config.model_type),
            dtype=dtype,
            vpg_stored=tuple(sorted(vpg_stored)),
            licences=names,
            notes=tuple(ported.notes),
        )


def public_name(files: ModelFiles) -> str:
    """Return a hub id as it is, and of a local path its last part alone."""
    if files.hub:
        return files.name
    place = files.gguf or files.folder or Path(files.name)
    return place.resolve().name


def licence_of(files: ModelFiles) -> str | None:
    """Return the licence named in a model folder's own card, or None."""
    card = files.folder / CARD_FILE if files.folder is not None else None
    if card is None or not card.is_file():
        return None
    front = card.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(front) < 3 or front[0].strip():
        return None
    try:
        values = yaml.safe_load(front[1])
    except yaml.YAMLError:
        return None
    licence = values.get("license") if isinstance(values, dict) else None
    return str(licence) if licence else None


def model_card(
    lineage: Lineage, encoder: PromptEncoder, usage: Usage, lines: Sequence[str], facts: Mapping[str, Any]
) -> str:
    """Return ``README.md``.

    Args:
        lineage: Where the parts came from.
        encoder: How the model is prompted.
        usage: The call of the stock processor.
        lines: The Python that loads and asks the model.
        facts: Optional: ``title``, ``recipe`` (name), ``data`` (names of sets), ``stages`` (rows with
            ``name, parts, pairs, seconds, first_loss, last_loss``), ``evaluations`` (moment to ``loss,
            exact_match, image_gap, num_texts``), ``converter`` (metrics), ``notes``.
    """
    sections = [
        _front_matter(lineage),
        f"# {facts.get('title') or f'{lineage.source} on {lineage.target}'}",
        f"The visual prompt generator of **{lineage.source}**, ported to **{lineage.target}** "
        f"({lineage.llm_class}, frozen) with [vpgtrans](https://arxiv.org/abs/2305.01278). It is a stock "
        f"`{lineage.model_class}`: no remote code, nothing to install but transformers.",
        "## Use\n\n```python\n" + "\n".join(lines) + "\n```",
        "\n".join(f"* {line}" for line in _prompt_facts(lineage, encoder, usage)),
        _trained(facts.get("stages") or ()),
        _measured(facts.get("evaluations") or {}),
        _converter(facts.get("converter") or {}),
        _lineage(lineage, facts),
        "## Limits\n\n" + "\n".join(f"* {line}" for line in _limits(lineage, encoder)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def add_verification(folder: Path, lines: Sequence[str]) -> None:
    """Put the outcome of the verification at the end of a card, in place of an earlier one."""
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8").split(f"\n{_VERIFIED}\n", 1)[0].rstrip("\n")
    body = "\n".join(f"* {line}" for line in lines)
    atomic_write_text(path, f"{text}\n\n{_VERIFIED}\n\n{body}\n")


def _front_matter(lineage: Lineage) -> str:
    values: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": list(dict.fromkeys([lineage.source, lineage.target])),
        "tags": ["vpgtrans", "blip-2", "vision-language", "image-captioning", "visual-question-answering"],
    }
    known = {licence for licence in lineage.licences.values() if licence}
    if known:
        # one licence only if it is everybody's; otherwise the text says whose is whose
        same = len(known) == 1 and all(lineage.licences.values())
        values["license"] = known.pop() if same else "other"
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _prompt_facts(lineage: Lineage, encoder: PromptEncoder, usage: Usage) -> list[str]:
    order = {
        "bos-image-text": "BOS, image, text",
        "image-bos-text": "image, BOS, text (the stock processor's own order)",
        "image-text": "image, text",
    }[encoder.layout]
    end = repr(encoder.prompt.answer_end) if encoder.ends_with_text else "the end-of-sequence token"
    facts = [
        f"Token order in training: {order}. Template: `{encoder.prompt.template!r}`; answers end with {end}.",
    ]
    if usage.explicit:
        facts.append("No plain call of the processor gives these ids, so the lines above put them together.")
    elif usage.num_query_tokens is None:
        facts.append(
            "The text spells the image places: the stock processor would put them in front of BOS, so its "
            "`num_query_tokens` is empty here. Do not pass `max_length` to it."
        )
    if lineage.vpg_stored == ("F32",) and lineage.dtype != "float32":
        facts.append(
            f"VPG and projector are stored in float32 as they were trained; `from_pretrained` casts them to "
            f"{lineage.dtype}, the LLM's dtype, unless you pass `dtype`."
        )
    return facts


def _trained(stages: Sequence[Mapping[str, Any]]) -> str:
    if not stages:
        return ""
    rows = [
        (
            str(stage.get("name", "")),
            ", ".join(stage.get("parts") or ()),
            _number(stage.get("pairs"), ",.0f"),
            _number(stage.get("seconds"), ",.0f"),
            _number(stage.get("first_loss"), ".3f"),
            _number(stage.get("last_loss"), ".3f"),
        )
        for stage in stages
    ]
    header = ("stage", "trained", "pairs", "seconds", "first loss", "last loss")
    return "## What was trained\n\nThe LLM was frozen throughout.\n\n" + _table(header, rows)


def _measured(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            moment,
            _number(numbers.get("loss"), ".4f"),
            _number(numbers.get("exact_match"), ".1%"),
            _number(numbers.get("image_gap"), ".3f"),
            _number(numbers.get("num_texts"), ",.0f"),
        )
        for moment, numbers in evaluations.items()
        if numbers
    ]
    if not rows:
        return ""
    header = ("moment", "held-out loss", "exact match", "image gap", "texts")
    explained = "Image gap: how much higher the loss is when images are shuffled between texts."
    return "## Measured on held-out data\n\n" + _table(header, rows) + f"\n\n{explained}"


def _converter(metrics: Mapping[str, Any]) -> str:
    rows = [(name, f"{value:.4g}") for name, value in metrics.items() if isinstance(value, int | float)]
    return "## Word converter\n\n" + _table(("metric", "value"), rows) if rows else ""


def _lineage(lineage: Lineage, facts: Mapping[str, Any]) -> str:
    lines = [
        f"VPG (vision encoder, Q-Former, query tokens) and projector: {lineage.source}",
        f"LLM: {lineage.target} ({lineage.llm_class}), weights unchanged",
    ]
    if facts.get("recipe"):
        lines.append(f"Recipe: {facts['recipe']}")
    if facts.get("data"):
        lines.append(f"Training data: {', '.join(facts['data'])}")
    lines += [
        f"Licence of {name}: {licence or 'see its own page'}" for name, licence in lineage.licences.items()
    ]
    lines += [str(note) for note in (*lineage.notes, *(facts.get("notes") or ()))]
    return "## Lineage\n\n" + "\n".join(f"* {line}" for line in lines)


def _limits(lineage: Lineage, encoder: PromptEncoder) -> list[str]:
    lines = ["One image a prompt.", _version_line(lineage)]
    if encoder.is_encoder_decoder:
        lines.append("vLLM: no, its BLIP-2 takes decoder-only LLMs.")
    elif lineage.llm_type in _NOT_IN_VLLM:
        lines.append(f"vLLM: not expected to load, its {lineage.llm_class} does not fit its BLIP-2.")
    elif encoder.layout == "bos-image-text":
        lines.append(
            "vLLM: its BLIP-2 puts the image in front of BOS, this model was trained with BOS in front; "
            "expect worse answers there (not tried)."
        )
    else:
        lines.append(f"vLLM: meant to load where vLLM knows {lineage.llm_class} (not tried).")
    lines.append("llama.cpp: no, it has no Q-Former.")
    return lines


def _version_line(lineage: Lineage) -> str:
    if lineage.llm_type in _NEEDS_5:
        return f"Needs transformers 5 or newer. {_NEEDS_5[lineage.llm_type]}"
    return (
        f"Written with transformers {transformers.__version__}; the files carry the 4.57 spellings too, "
        "for LLM classes that 4.57 has."
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, int | float) else "–"
