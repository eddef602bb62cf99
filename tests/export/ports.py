"""Tiny ports to export: one source VLM, target folders of many kinds, a few coloured pictures."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from tests.tiny import TokenizerKind, save_tiny_blip2, save_tiny_llm
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.recipe import Prompt
from vpgtrans.vlm.assemble import Ported, assemble_port
from vpgtrans.weights.locate import ModelFiles, locate_model

TEMPLATE = "Question: {prompt} Answer: {answer}"
COLOURS = {"red": (210, 30, 40), "green": (20, 180, 60), "blue": (30, 50, 230)}


@dataclass
class Port:
    """A ported model with the files that it came from."""

    source: ModelFiles
    target: ModelFiles
    ported: Ported

    @property
    def model(self) -> Any:
        return self.ported.model

    def encoder(self, layout: str = "bos-image-text", **prompt: Any) -> PromptEncoder:
        ported = self.ported
        section = Prompt(**{"template": TEMPLATE, "max_text_tokens": 64, **prompt})
        return PromptEncoder(
            ported.tokenizer,
            ported.image_token_id,
            ported.num_image_tokens,
            layout,
            section,
            bool(ported.llm.config.is_encoder_decoder),
        )


def source_folder(root: Path) -> Path:
    """Return the one source VLM below ``root`` (a llama inside), made when first asked for."""
    folder = root / "source-vlm"
    if not (folder / "config.json").is_file():
        save_tiny_blip2(folder)
    return folder


def target_folder(
    root: Path, model_type: str, kind: TokenizerKind = "bpe", name: str | None = None, **config: Any
) -> Path:
    folder = root / (name or f"target-{model_type}-{kind}")
    lively = {"initializer_factor": 3.0} if model_type == "t5" else {}  # or it answers with padding
    return save_tiny_llm(folder, model_type, kind, **{"hidden": 48, "seed": 5, **lively, **config})


def make_port(root: Path, target: Path, dtype: torch.dtype = torch.float32) -> Port:
    """Assemble a port whose projector gives soft prompts that matter."""
    source, there = locate_model(str(source_folder(root))), locate_model(str(target))
    ported = assemble_port(source, there, dtype)
    stir(ported)
    return Port(source, there, ported)


@torch.no_grad()
def stir(ported: Ported) -> None:
    """Give projector and Q-Former values that no file has, as training would."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in ported.model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.startswith("language_projection."):
            parameter.copy_(noise * 0.3)
        elif name.startswith(("qformer.", "query_tokens")):
            parameter.add_(noise * 0.1)


def make_pairs(root: Path) -> list[tuple[Record, TextPair]]:
    """Return three pictures with two questions each."""
    pairs = []
    for name, colour in COLOURS.items():
        path = root / f"{name}.png"
        if not path.is_file():
            Image.new("RGB", (20, 24), colour).save(path)
        texts = (
            TextPair("what colour is the square?", name),
            TextPair("what is it?", f"a {name} square", (f"a {name} square", "a square")),
        )
        record = Record(name, ImageFile(path), texts)
        pairs += [(record, text) for text in texts]
    return pairs


def written(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of an export, by the index."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found = load_file(path)
        assert not tensors.keys() & found.keys(), "a tensor is written twice"
        tensors.update(found)
    return tensors


@lru_cache(maxsize=1)
def transformers_logging() -> None:
    """Keep load reports out of the test output."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
