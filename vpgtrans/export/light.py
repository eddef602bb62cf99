"""A port without weights, for exporting a run whose LLM should not be loaded.

Every tensor is on the meta device: names, shapes and ties are right, and ``export_hf`` takes the values from
the files of source, run and target.
"""

import copy

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from vpgtrans.alignment.tables import load_tokenizer
from vpgtrans.vlm.assemble import Ported
from vpgtrans.vlm.family import family_of
from vpgtrans.vlm.image_token import place_image_token
from vpgtrans.vlm.llm import reset_generation
from vpgtrans.vlm.portability import check_source, check_target, target_note
from vpgtrans.weights.locate import ModelFiles


def empty_port(source: ModelFiles, target: ModelFiles) -> Ported | None:
    """Assemble source VPG and target LLM without reading a weight.

    Returns:
        None where the export needs the LLM in memory: a GGUF file, projections to fold, or a table to
        make longer for ``<image>``. Use ``vlm.assemble.assemble_port`` then.

    Raises:
        CheckpointError: Source and target confused.
        PortabilityError: A class that cannot be ported.
    """
    check_source(source.config())
    check_target(target.config())
    if target.gguf is not None:
        return None
    text = AutoConfig.from_pretrained(str(target.folder), local_files_only=True)
    if getattr(text, "word_embed_proj_dim", None) not in (None, text.hidden_size):
        return None
    family = family_of(source.config())
    model = _meta_model(source, text)
    llm = family.llm(model)
    placed = place_image_token(load_tokenizer(target), llm.get_input_embeddings().weight.shape[0])
    if placed.way == "resized":
        return None
    llm.generation_config = _generation_config(target, llm)
    reset_generation(llm, placed.tokenizer)
    model.config.text_config = llm.config
    model.config.image_token_index = placed.token_id
    projector = family.projector(model)
    return Ported(
        model=model,
        family=family,
        tokenizer=placed.tokenizer,
        image_processor=AutoImageProcessor.from_pretrained(str(source.folder), local_files_only=True),
        image_token_id=placed.token_id,
        source_projector=nn.Linear(projector.in_features, projector.out_features, device="meta"),
        notes=[note for note in (target_note(target.config()), placed.note) if note],
    )


def _meta_model(source: ModelFiles, text: PreTrainedConfig) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(str(source.folder), local_files_only=True)
    values = {**config.to_dict(), "text_config": copy.deepcopy(text).to_dict()}
    values.pop("quantization_config", None)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(type(config).from_dict(values))
    return model.eval()


def _generation_config(target: ModelFiles, llm: PreTrainedModel) -> GenerationConfig:
    """Return the LLM's generation settings as loading it would: its file, else its config."""
    if target.folder is not None and (target.folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(str(target.folder), local_files_only=True)
    return GenerationConfig.from_model_config(llm.config)
