"""A tiny source VLM on disk, shared by the tests of this folder (nothing writes into it)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from tests.tiny import save_tiny_blip2, tiny_tokenizer
from tests.vlm.llms import save_llm
from vpgtrans.weights.locate import ModelFiles, locate_model

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """A stock BLIP-2 around a Llama, 32 wide."""
    return locate_model(str(save_tiny_blip2(tmp_path_factory.mktemp("source"), "llama", hidden=32)))


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 300 tokens."""
    return tiny_tokenizer("bpe")


@pytest.fixture
def saved_llm(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Callable[..., tuple[Any, ModelFiles]]:
    """A function that saves a tiny LLM by test name and returns model and files."""

    def save(name: str, **extra: Any) -> tuple[Any, ModelFiles]:
        folder = tmp_path / f"llm-{name}"
        model = save_llm(folder, name, tokenizer, **extra)
        return model, locate_model(str(folder))

    return save
