"""What a model is made of, and what a port would do with it: configs and tensor headers only, no torch."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vpgtrans.errors import VPGTransError
from vpgtrans.vlm.parts import IMAGE_TOKEN, LLM_PREFIX, PARTS, STAGES
from vpgtrans.vlm.placeholder import PlaceholderPlan, plan_placeholder, table_rows
from vpgtrans.vlm.portability import (
    check_source,
    check_target,
    embedding_space,
    target_note,
)
from vpgtrans.vlm.portability import (
    is_vlm as has_vision,
)
from vpgtrans.vlm.sharing import SHARED, visual_prefix
from vpgtrans.weights.headers import TORCH_DTYPES, TensorInfo, tensor_infos
from vpgtrans.weights.locate import ModelFiles

_WIDTH_KEYS = ("hidden_size", "d_model", "n_embd")
_LABELS: Mapping[str, str] = {
    "vision_encoder": "vision encoder",
    "vision_norm": "vision norm",
    "query_tokens": "query tokens",
    "qformer": "Q-Former",
    "projector": "projector",
}


@dataclass(frozen=True)
class PartInfo:
    """One part of a model, as its headers show it."""

    name: str
    modules: str
    parameters: int
    width: int
    """Width of what the part gives out."""
    dtype: str


@dataclass(frozen=True)
class Anatomy:
    """A model as configs and headers show it. VLM fields are None for a plain LLM."""

    model: str
    model_type: str
    parts: tuple[PartInfo, ...]
    num_query_tokens: int | None
    """Soft-prompt length."""
    vpg_width: int | None
    """Width of what the projector reads."""
    llm_width: int
    llm_type: str
    embedding_scaled: str
    """Where the LLM scales its word embeddings."""
    visual_prefix: str
    """Whether all texts of an image share its soft prompt inside the LLM while training, or why not."""
    vocabulary_rows: int
    tokenizer_size: int | None
    image_token: str
    """Where ``<image>`` stands, or would go."""

    @property
    def parameters(self) -> int:
        """All parameters in the files."""
        return sum(part.parameters for part in self.parts)

    def facts(self) -> dict[str, Any]:
        """Return what is not a row of the parts table, by name, for printing."""
        facts: dict[str, Any] = {"parameters": self.parameters}
        if self.num_query_tokens is not None:
            facts["soft-prompt length"] = self.num_query_tokens
            facts["projector"] = f"{self.vpg_width} -> {self.llm_width}"
        facts["LLM"] = f"{self.llm_type}, {self.llm_width} wide"
        facts["embedding space"] = self.embedding_scaled
        facts["visual prefix"] = self.visual_prefix
        facts["vocabulary rows"] = self.vocabulary_rows
        facts["tokenizer size"] = "unknown" if self.tokenizer_size is None else self.tokenizer_size
        facts[IMAGE_TOKEN] = self.image_token
        return facts

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "parts": [asdict(part) for part in self.parts]}


@dataclass(frozen=True)
class PortPlan:
    """What a port would do, part by part."""

    rows: tuple[tuple[str, str, str], ...]
    """Part, action (``inherited``, ``converted and fused``, ``newly made``, ``frozen target``), detail."""
    blockers: tuple[str, ...]
    """Everything that makes the port impossible; empty if nothing does."""
    trained_in: dict[str, tuple[str, ...]]
    """Stage of the paper -> parts that it trains."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def inspect_model(files: ModelFiles) -> Anatomy:
    """Read the anatomy of a VLM or an LLM from its configs and headers.

    Raises:
        CheckpointError: files are missing, truncated or corrupt.
        PortabilityError: a VLM class whose parts are not known here.
    """
    config = files.config()
    infos = tensor_infos(files)
    model_type = str(config.get("model_type"))
    is_vlm = model_type in PARTS
    if not is_vlm and has_vision(config):
        check_source(config)  # says why its parts cannot be told apart
    text = dict(config.get("text_config") or {}) if is_vlm else config
    prefix = LLM_PREFIX[model_type] if is_vlm else ""
    llm_infos = {name: info for name, info in infos.items() if name.startswith(prefix)}
    rows, columns = table_rows(llm_infos, prefix, text)
    llm_width = next((int(text[key]) for key in _WIDTH_KEYS if text.get(key)), columns)
    llm_type = str(text.get("model_type"))
    parts = _vpg_parts(model_type, config, infos) if is_vlm else ()
    placeholder = plan_placeholder(files, rows)
    projector = next((part for part in parts if part.name == _LABELS["projector"]), None)
    return Anatomy(
        model=files.name,
        model_type=model_type,
        parts=(*parts, _part("LLM", prefix.rstrip(".") or "all", llm_infos, llm_width)),
        num_query_tokens=config.get("num_query_tokens", 32) if is_vlm else None,
        vpg_width=_projector_shape(model_type, infos)[1] if projector else None,
        llm_width=llm_width,
        llm_type=llm_type,
        embedding_scaled=embedding_space(llm_type),
        visual_prefix=visual_prefix(text),
        vocabulary_rows=rows,
        tokenizer_size=placeholder.tokenizer_size,
        image_token=_image_place(config, placeholder) if is_vlm else placeholder.text,
    )


def plan_port(source: ModelFiles, target: ModelFiles) -> PortPlan:
    """Say what a port would inherit, convert and make, and everything that blocks it.

    Problems do not raise: they are the plan's ``blockers``.
    """
    blockers: list[str] = []

    def attempt(check: Callable[[], Any]) -> Any:
        try:
            return check()
        except VPGTransError as error:
            if str(error) not in blockers:
                blockers.append(str(error))
            return None

    attempt(lambda: check_source(source.config()))
    attempt(lambda: check_target(target.config()))
    source_is_vlm = (attempt(source.config) or {}).get("model_type") in PARTS
    here = attempt(lambda: inspect_model(source)) if source_is_vlm else None
    there = attempt(lambda: inspect_model(target))
    if here is not None:
        blockers += _source_problems(here, source)
    return PortPlan(
        rows=_rows(here, there, target) if here and there and len(there.parts) == 1 else (),
        blockers=tuple(blockers),
        trained_in=dict(STAGES),
    )


def _rows(here: Anatomy, there: Anatomy, target: ModelFiles) -> tuple[tuple[str, str, str], ...]:
    inherited = [
        (part.name, "inherited", f"{part.parameters:,} parameters, float32")
        for part in here.parts
        if part.name not in ("LLM", _LABELS["projector"])
    ]
    widths = f"{here.vpg_width} -> {here.llm_width} becomes {here.vpg_width} -> {there.llm_width}"
    llm = there.parts[-1]
    note = target_note(target.config())
    detail = f"{there.llm_type}, {llm.parameters:,} parameters, {llm.dtype}; {there.embedding_scaled}"
    if not there.visual_prefix.startswith(SHARED):
        detail = f"{detail}; visual prefix {there.visual_prefix}"
    return (
        *inherited,
        ("projector", "converted and fused", widths),
        (IMAGE_TOKEN, "newly made", there.image_token),
        ("LLM", "frozen target", f"{detail}; {note}" if note else detail),
    )


def _vpg_parts(
    model_type: str, config: Mapping[str, Any], infos: Mapping[str, TensorInfo]
) -> tuple[PartInfo, ...]:
    vision = int((config.get("vision_config") or {}).get("hidden_size", 1408))
    qformer = int((config.get("qformer_config") or {}).get("hidden_size", 768))
    widths = {
        "vision_encoder": vision,
        "vision_norm": vision,
        "query_tokens": qformer,
        "qformer": qformer,
        "projector": _projector_shape(model_type, infos)[0],
    }
    return tuple(
        _part(
            _LABELS[part],
            ", ".join(prefix.rstrip(".") for prefix in prefixes),
            {name: info for name, info in infos.items() if name.startswith(prefixes)},
            widths[part],
        )
        for part, prefixes in PARTS[model_type].items()
    )


def _projector_shape(model_type: str, infos: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Return (out, in) of the projector; zeros if it is not in the files."""
    info = infos.get(PARTS[model_type]["projector"][0] + "weight")
    return (info.shape[0], info.shape[1]) if info is not None and len(info.shape) == 2 else (0, 0)


def _part(name: str, modules: str, infos: Mapping[str, TensorInfo], width: int) -> PartInfo:
    dtypes = sorted({TORCH_DTYPES.get(info.dtype, info.dtype) for info in infos.values()})
    count = sum(info.numel for info in infos.values())
    return PartInfo(name, modules, count, width, ", ".join(dtypes) or "-")


def _image_place(config: Mapping[str, Any], placeholder: PlaceholderPlan) -> str:
    token_id = config.get("image_token_index")
    return placeholder.text if token_id is None else f"id {token_id}"


def _source_problems(here: Anatomy, source: ModelFiles) -> list[str]:
    """Return what is wrong inside a source VLM: absent parts, a projector of the wrong width."""
    problems = [
        f"{source.name} has no weights of its {part.name} ({part.modules}); give a complete checkpoint"
        for part in here.parts
        if part.parameters == 0 and part.name != "LLM"
    ]
    projector = next(part for part in here.parts if part.name == _LABELS["projector"])
    qformer = next(part for part in here.parts if part.name == _LABELS["qformer"])
    if projector.parameters and projector.width != here.llm_width:
        problems.append(
            f"the projector of {source.name} is {projector.width} wide, its LLM {here.llm_width}: "
            "config and weights do not belong together"
        )
    if projector.parameters and here.vpg_width != qformer.width:
        problems.append(
            f"the projector of {source.name} reads {here.vpg_width} numbers, its Q-Former gives "
            f"{qformer.width}: config and weights do not belong together"
        )
    return problems
