"""A tiny ported model, its collator, and a few pictures with two texts each."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.export.ports import Port, make_pairs, make_port, target_folder, transformers_logging
from vpgtrans.data.batches import Collator
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.vlm.forward import Trainee


@dataclass
class Setup:
    """What an evaluation is given."""

    port: Port
    trainee: Trainee
    encoder: PromptEncoder
    collator: Collator
    pairs: list[tuple[Record, TextPair]]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers_logging()
    return tmp_path_factory.mktemp("evaluation")


def make_setup(root: Path, model_type: str, layout: str) -> Setup:
    port = make_port(root, target_folder(root, model_type))
    encoder = port.encoder(layout)
    collator = Collator(encoder, port.ported.image_processor)
    return Setup(port, Trainee(port.ported), encoder, collator, make_pairs(root))


@pytest.fixture(scope="session")
def causal(root: Path) -> Setup:
    return make_setup(root, "opt", "image-bos-text")


@pytest.fixture(scope="session")
def seq2seq(root: Path) -> Setup:
    return make_setup(root, "t5", "image-text")


@pytest.fixture(autouse=True)
def _no_randomness_left_behind() -> None:
    torch.manual_seed(0)
