"""Shared ports: assembled once, never changed by a test."""

from pathlib import Path

import pytest

from tests.export.ports import Port, make_pairs, make_port, target_folder, transformers_logging
from vpgtrans.data.records import Record, TextPair


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    transformers_logging()


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ports")


@pytest.fixture(scope="session")
def pairs(root: Path) -> list[tuple[Record, TextPair]]:
    return make_pairs(root)


@pytest.fixture(scope="session")
def gemma(root: Path) -> Port:
    return make_port(root, target_folder(root, "gemma3_text", "unigram"))


@pytest.fixture(scope="session")
def llama(root: Path) -> Port:
    return make_port(root, target_folder(root, "llama"))


@pytest.fixture(scope="session")
def t5(root: Path) -> Port:
    return make_port(root, target_folder(root, "t5"))
