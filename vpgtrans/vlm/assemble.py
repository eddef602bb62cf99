"""Put a source's VPG and a target LLM into one stock VLM, without ever loading the source's LLM.

The model is the stock class itself: whatever is trained here is what ``from_pretrained`` reads later.
Dtypes: VPG and projector float32, the LLM in its own.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from vpgtrans.alignment.tables import load_tokenizer
from vpgtrans.errors import CheckpointError
from vpgtrans.vlm.family import VLMFamily, family_of
from vpgtrans.vlm.image_token import IMAGE_TOKEN, ImageToken, grow_table, place_image_token
from vpgtrans.vlm.llm import (
    check_embedding_path,
    choose_attention,
    default_llm_dtype,
    from_pretrained,
    load_llm,
    reset_generation,
)
from vpgtrans.vlm.portability import check_source, check_target, target_note
from vpgtrans.weights.headers import TensorInfo, tensor_infos
from vpgtrans.weights.lazy import read_tensor
from vpgtrans.weights.locate import ModelFiles


@dataclass
class Ported:
    """A stock VLM in memory with all that it needs to be trained, evaluated and exported."""

    model: PreTrainedModel
    family: VLMFamily
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    image_token_id: int
    source_projector: nn.Linear
    """The source's projector in float32 (its output width is the source LLM's)."""
    notes: list[str] = field(default_factory=list)
    grown_rows: int = 0
    """Rows that the LLM's table was made longer by: an export cannot then copy the LLM's files."""

    @property
    def llm(self) -> PreTrainedModel:
        """The LLM inside."""
        return self.family.llm(self.model)

    @property
    def num_image_tokens(self) -> int:
        """Soft-prompt length."""
        return int(self.model.config.num_query_tokens)


def load_vlm(files: ModelFiles, dtype: torch.dtype | None = None) -> Ported:
    """Load a stock VLM folder as it is, with the VPG in float32 whatever the LLM's dtype.

    Args:
        files: where the VLM is.
        dtype: of the LLM; None: bfloat16 with a GPU, else float32.

    Raises:
        CheckpointError: an LLM given, or weights missing, truncated or corrupt.
        PortabilityError: a class that is not supported.
    """
    values = files.config()
    family = family_of(values)
    infos = tensor_infos(files)
    model = from_pretrained(AutoModelForImageTextToText, files, dtype or default_llm_dtype())
    llm = family.llm(model)
    _restore_float32(model, family, files, infos)
    model.requires_grad_(False)
    model.eval()
    choose_attention(llm)
    check_embedding_path(llm, files.name)
    placed = _known_image_token(load_tokenizer(files), model, files)
    model.config.image_token_index = placed.token_id
    reset_generation(llm, placed.tokenizer)
    model.config.text_config = llm.config
    return Ported(
        model=model,
        family=family,
        tokenizer=placed.tokenizer,
        image_processor=_image_processor(files),
        image_token_id=placed.token_id,
        source_projector=copy.deepcopy(family.projector(model)),
        notes=[placed.note] if placed.note else [],
    )


def assemble_port(source: ModelFiles, target: ModelFiles, llm_dtype: torch.dtype | None = None) -> Ported:
    """Build the stock VLM of the source's VPG and the target LLM.

    The projector has the right shape and random weights: fuse a converter into ``source_projector`` and
    put the result in with ``family.set_projector``. The source's LLM is never read.

    Args:
        source: a VLM folder.
        target: an LLM (safetensors, ``.bin`` or GGUF).
        llm_dtype: of the LLM; None: bfloat16 with a GPU, else float32.

    Raises:
        CheckpointError: source and target confused, or weights missing, truncated or corrupt.
        PortabilityError: a class that cannot be ported.
    """
    check_source(source.config())
    check_target(target.config())
    family = family_of(source.config())
    infos = tensor_infos(source)
    llm = load_llm(target, llm_dtype or default_llm_dtype())
    rows = llm.get_input_embeddings().weight.shape[0]
    placed = place_image_token(load_tokenizer(target), rows)
    notes = [note for note in (target_note(target.config()), placed.note) if note]
    grown = max(0, placed.token_id + 1 - rows)
    if grown:
        grow_table(llm, placed.token_id + 1)
    reset_generation(llm, placed.tokenizer)
    model = _composite(source, llm, placed.token_id)
    _load_vpg(model, family, source, infos)
    model.requires_grad_(False)
    model.eval()
    return Ported(
        model=model,
        family=family,
        tokenizer=placed.tokenizer,
        image_processor=_image_processor(source),
        image_token_id=placed.token_id,
        source_projector=_source_projector(family, source, infos),
        notes=notes,
        grown_rows=grown,
    )


def _vlm_config(files: ModelFiles) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(str(files.folder), local_files_only=True)


def _composite(source: ModelFiles, llm: PreTrainedModel, image_token_id: int) -> PreTrainedModel:
    """Build the stock class around ``llm``; the VPG's tensors have no memory yet (meta)."""
    config = _vlm_config(source)
    values = config.to_dict()
    text = copy.deepcopy(llm.config)
    text.architectures = [type(llm).__name__]
    values["text_config"] = text.to_dict()
    values["image_token_index"] = image_token_id
    values.pop("quantization_config", None)
    fresh = type(config).from_dict(values)
    fresh.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))
    fresh.architectures = list(config.architectures or [])
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(fresh)
    model.config.architectures = [type(model).__name__]
    # one config object for both: a later change (a resized table) must show in what is saved
    llm.config.architectures = text.architectures
    model.language_model = llm
    model.config.text_config = llm.config
    return model


def _vpg_names(model: PreTrainedModel, family: VLMFamily, *, projector: bool) -> list[str]:
    """Return the names of the VPG's parameters and buffers, with or without the projector."""
    prefixes = tuple(
        prefix
        for part, part_prefixes in family.parts.items()
        for prefix in part_prefixes
        if projector or part != "projector"
    )
    return [name for name in model.state_dict() if name.startswith(prefixes)]


def _load_vpg(
    model: PreTrainedModel, family: VLMFamily, source: ModelFiles, infos: Mapping[str, TensorInfo]
) -> None:
    """Give every VPG tensor its memory from the source's files, float32; the projector a random start."""
    names = _vpg_names(model, family, projector=False)
    missing = [name for name in names if name not in infos]
    if missing:
        raise _missing(source, missing)
    state = {name: read_tensor(infos[name]).float() for name in names}
    _check_shapes(model, state, source)
    model.load_state_dict(state, strict=False, assign=True)
    old = family.projector(model)
    family.set_projector(model, nn.Linear(old.in_features, old.out_features, bias=old.bias is not None))
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise CheckpointError(
                f"{source.name} gives no values for '{name}'; it is not a complete checkpoint"
            )


def _restore_float32(
    model: PreTrainedModel, family: VLMFamily, files: ModelFiles, infos: Mapping[str, TensorInfo]
) -> None:
    """Undo the cast of VPG and projector to the LLM's dtype: read them again as they are in the files."""
    current = model.state_dict()
    state = {
        name: (read_tensor(infos[name]) if name in infos else current[name]).float()
        for name in _vpg_names(model, family, projector=True)
        if current[name].dtype != torch.float32
    }
    model.load_state_dict(state, strict=False, assign=True)


def _check_shapes(model: PreTrainedModel, state: Mapping[str, torch.Tensor], source: ModelFiles) -> None:
    for name, tensor in state.items():
        wanted = tuple(model.get_parameter(name).shape)
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"'{name}' in {source.name} has shape {tuple(tensor.shape)}, its config wants {wanted}"
            )


def _source_projector(family: VLMFamily, source: ModelFiles, infos: Mapping[str, TensorInfo]) -> nn.Linear:
    (prefix,) = family.parts["projector"]
    if f"{prefix}weight" not in infos:
        raise _missing(source, [f"{prefix}weight"])
    weight = read_tensor(infos[f"{prefix}weight"]).float()
    bias = read_tensor(infos[f"{prefix}bias"]).float() if f"{prefix}bias" in infos else None
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias, requires_grad=False)
    return linear


def _known_image_token(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, files: ModelFiles
) -> ImageToken:
    """Return the placeholder of a stock VLM; BLIP-2 folders from before 2024 do not have one yet."""
    token_id = model.config.image_token_index
    found = tokenizer.get_vocab().get(IMAGE_TOKEN)
    if token_id is not None and found == token_id:
        return ImageToken(tokenizer, token_id, "present", "")
    placed = place_image_token(tokenizer, model.get_input_embeddings().weight.shape[0])
    if placed.way == "resized":
        raise CheckpointError(
            f"{files.name}: its config says image_token_index {token_id}, its tokenizer puts {IMAGE_TOKEN} "
            f"at {found}, and its embedding table has no row left; save it with its Blip2Processor first"
        )
    return placed


def _image_processor(files: ModelFiles) -> Any:
    try:
        return AutoImageProcessor.from_pretrained(str(files.folder), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(
            f"{files.name} has no readable image processor (preprocessor_config.json or "
            f"processor_config.json): {str(error).splitlines()[0]}"
        ) from error


def _missing(files: ModelFiles, names: list[str]) -> CheckpointError:
    return CheckpointError(
        f"{len(names)} weights of the model are not in {files.name}, first: {', '.join(names[:3])}; "
        "give a complete checkpoint"
    )
