"""What one forward and backward pass of a stage consists of, and what its parts cost."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from vpgtrans.cost.layers import tally_layers
from vpgtrans.cost.modules import (
    DTYPES,
    build_front,
    build_llm,
    build_vision,
    count_parameters,
    empty,
)
from vpgtrans.cost.system import VPG_PARTS, System
from vpgtrans.cost.tally import Tally


@dataclass(frozen=True)
class Work:
    """One pass over a micro-batch: how much text, how many images, what is trained."""

    pairs: int
    """Texts in the pass."""
    images: int
    """Different images in the pass."""
    text_tokens: int
    """Tokens a text, padded, soft prompt left out; for an encoder-decoder those of the encoder."""
    logit_tokens: int
    """Places a text whose logits are computed; for an encoder-decoder the decoder's length."""
    trained: frozenset[str] = frozenset({"projector"})
    """Recipe part names, and ``llm``."""
    cached: bool = False
    """Vision features come from disk."""
    checkpointing: bool = False
    """The LLM's activations are computed a second time instead of kept."""


@dataclass(frozen=True)
class PassCost:
    """What one pass costs, by part."""

    parts: Mapping[str, Tally]
    """``vision encoder``, ``Q-Former and projector``, ``LLM``."""
    trained_parameters: int
    gradient_bytes: int

    @property
    def total(self) -> Tally:
        """All parts; peak bytes are those of ``activation_bytes``."""
        ops = sum((tally for tally in self.parts.values()), Tally()).ops
        return Tally(ops, self.activation_bytes)

    @property
    def activation_bytes(self) -> float:
        """Most bytes alive besides weights, gradients and optimizer."""
        together = sum(t.peak_bytes for name, t in self.parts.items() if name != "frozen vision encoder")
        alone = self.parts.get("frozen vision encoder", Tally()).peak_bytes
        return max(together - self.gradient_bytes, alone)


@dataclass(frozen=True)
class Sizes:
    """Parameters and bytes of a system's parts."""

    parameters: Mapping[str, int]
    weight_bytes: Mapping[str, int] = field(default_factory=dict)

    def trained(self, parts: Iterable[str]) -> int:
        """Return the parameters of the named parts."""
        return sum(self.parameters.get(part, 0) for part in parts)


def sizes_of(system: System) -> Sizes:
    """Return parameters and bytes by recipe part, and of the LLM under ``llm``."""
    return _sizes(_Key(system))


def cost_of_pass(system: System, work: Work) -> PassCost:
    """Run one pass on the meta device, part by part, and return what it costs.

    The parts are counted one by one: where nothing before a part is trained it gets no gradient to pass
    on, exactly as in the whole model (``tests/cost/test_work.py`` compares them).
    """
    return _cost(_Key(system), work)


class _Key:
    """Makes a system hashable by its contents, so that nothing is counted twice."""

    def __init__(self, system: System) -> None:
        self.system = system
        self._text = repr(system)

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._text == other._text


@lru_cache(maxsize=64)
def _sizes(key: _Key) -> Sizes:
    system = key.system
    vision = _vision(key)
    front = build_front(system, _vision_width(system, vision))
    counts = {part: sum(p.numel() for p in members) for part, members in front.parts().items()}
    counts["vision_encoder"] = 0 if vision is None else count_parameters(vision)
    counts["llm"] = count_parameters(_llm(key))
    widths = {"llm": DTYPES[system.llm_dtype].itemsize}
    vpg = DTYPES[system.vpg_dtype].itemsize
    return Sizes(counts, {part: number * widths.get(part, vpg) for part, number in counts.items()})


@lru_cache(maxsize=256)
def _cost(key: _Key, work: Work) -> PassCost:
    system = key.system
    parts: dict[str, Tally] = {}
    encoder_trained = "vision_encoder" in work.trained
    if not work.cached:
        name = "vision encoder" if encoder_trained else "frozen vision encoder"
        parts[name] = _vision_cost(key, work.images, encoder_trained)
    # neither text nor caching changes what the parts before the LLM do, nor images what the LLM does
    parts["Q-Former and projector"] = _front_cost(key, Work(1, work.images, 1, 1, work.trained))
    below = {"projector"} if work.trained - {"llm"} else set()
    read = replace(work, images=1, cached=False, trained=frozenset(below | (work.trained & {"llm"})))
    parts["LLM"] = _llm_cost(key, read)
    sizes = _sizes(key)
    trained = sizes.trained(work.trained)
    dtypes = {"llm": DTYPES[system.llm_dtype].itemsize}
    grads = sum(
        sizes.parameters.get(part, 0) * dtypes.get(part, DTYPES[system.vpg_dtype].itemsize)
        for part in work.trained
    )
    return PassCost(parts, trained, grads)


@lru_cache(maxsize=8)
def _vision(key: _Key) -> nn.Module | None:
    return build_vision(key.system)


@lru_cache(maxsize=8)
def _llm(key: _Key) -> nn.Module:
    return build_llm(key.system)


def _vision_width(system: System, vision: nn.Module | None) -> int:
    return system.vision_width if vision is None else int(vision.config.hidden_size)  # type: ignore[union-attr, arg-type]


@lru_cache(maxsize=256)
def _vision_cost(key: _Key, images: int, trained: bool) -> Tally:
    system, module = key.system, _vision(key)
    if module is None:
        return Tally(
            Tally().ops + type(Tally().ops)({(system.vision_flops * images, 0, system.vpg_dtype): 1})
        )
    size = int(system.vision.get("image_size", 224))
    module.requires_grad_(trained)

    def run() -> None:
        with torch.set_grad_enabled(trained):
            output = module(empty(images, 3, size, size, dtype=DTYPES[system.vpg_dtype])).last_hidden_state
            if trained:
                torch.autograd.backward(output, torch.empty_like(output))

    return tally_layers(module, run)


@lru_cache(maxsize=256)
def _front_cost(key: _Key, work: Work) -> Tally:
    system = key.system
    width = _vision_width(system, _vision(key))
    front = build_front(system, width)
    for part, members in front.parts().items():
        for parameter in members:
            parameter.requires_grad_(part in work.trained)
    places = system.patches if system.vision else system.image_tokens
    upstream = "vision_encoder" in work.trained
    features = empty(
        work.images,
        max(places, system.image_tokens),
        width,
        dtype=DTYPES[system.vpg_dtype],
        requires_grad=upstream,
    )
    graph = bool(work.trained.intersection((*VPG_PARTS, "projector")))

    def run() -> None:
        with torch.set_grad_enabled(graph):
            soft = front(features)
            if graph:
                torch.autograd.backward(soft, torch.empty_like(soft))

    return tally_layers(front, run)


@lru_cache(maxsize=256)
def _llm_cost(key: _Key, work: Work) -> Tally:
    system, module = key.system, _llm(key)
    whole = "llm" in work.trained
    module.requires_grad_(whole)
    _checkpoint(module, work.checkpointing)
    from_below = bool(work.trained - {"llm"})
    length = system.image_tokens + work.text_tokens

    def run() -> None:
        embeds = empty(
            work.pairs, length, system.llm_width, dtype=DTYPES[system.llm_dtype], requires_grad=from_below
        )
        mask = empty(work.pairs, length, dtype=torch.long)
        logits = _logits(module, system, work, embeds, mask)
        labels = empty(logits.shape[0] * logits.shape[1], dtype=torch.long)
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), labels, reduction="sum")
        if from_below or whole:
            torch.autograd.backward(loss)

    return tally_layers(module, run)


def _checkpoint(module: nn.Module, wanted: bool) -> None:
    """Switch recomputation on or off; transformers gave the switch a new name in 5.22."""
    module.train(wanted)
    word = "enable" if wanted else "disable"
    for prefix in ("activation", "gradient"):
        switch = getattr(module, f"{prefix}_checkpointing_{word}", None)
        if switch is not None:
            switch(**({f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}} if wanted else {}))
            return


def _logits(
    module: nn.Module, system: System, work: Work, embeds: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    extra: dict[str, Any] = {"use_cache": False}
    if system.is_encoder_decoder:
        extra["decoder_input_ids"] = empty(work.pairs, work.logit_tokens, dtype=torch.long)
    elif "logits_to_keep" in inspect.signature(module.forward).parameters:
        extra["logits_to_keep"] = work.logit_tokens
    logits: torch.Tensor = module(inputs_embeds=embeds, attention_mask=mask, **extra).logits
    return logits


def whole_logits(system: System, work: Work) -> Work:
    """Return the same pass with logits at every place of the text and the soft prompt."""
    if system.is_encoder_decoder:
        return work
    return replace(work, logit_tokens=system.image_tokens + work.text_tokens)
