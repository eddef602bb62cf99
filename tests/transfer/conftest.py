"""One finished transfer, shared by the tests that look at it."""

from pathlib import Path

import pytest

from tests.transfer.world import make_world
from vpgtrans.recipe import load_recipe
from vpgtrans.transfer.pipeline import TransferResult, run_transfer


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small world."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def finished(world: Path) -> TransferResult:
    """A transfer run to its end."""
    return run_transfer(load_recipe(str(world)), world.parent / "run")
