"""An export appears whole or not at all, replaces only an export, and tells nothing about this machine."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from tests.export.ports import Port, make_port, target_folder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import RunFolderError, SpaceError
from vpgtrans.export import hf
from vpgtrans.export.folder import MARKER, check_free, written_whole
from vpgtrans.export.hf import export_hf

FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vpgtrans.json",
}


def export(port: Port, folder: Path, **options: Any) -> Any:
    return export_hf(port.ported, port.source, port.target, port.encoder(), folder, **options)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_exactly_these_files_are_written(gemma: Port, tmp_path: Path) -> None:
    export(gemma, tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == FILES


def test_no_file_names_a_local_path(root: Path, tmp_path: Path, pairs: list[tuple[Record, TextPair]]) -> None:
    port = make_port(root, target_folder(root, "qwen3"))
    assert str(root) in port.source.name
    assert str(root) in str(port.ported.llm.config._name_or_path) + str(port.ported.tokenizer.name_or_path)
    export(port, tmp_path / "model", texts=[text for _, text in pairs])
    for path in (tmp_path / "model").iterdir():
        content = path.read_bytes()
        for place in (root, tmp_path, Path.home(), Path.cwd()):
            assert str(place).encode() + b"/" not in content, (path.name, place)
        assert b"_name_or_path" not in content, path.name


def test_the_marker_says_how_the_model_is_prompted(gemma: Port, tmp_path: Path) -> None:
    from vpgtrans.recipe import Prompt

    export(gemma, tmp_path / "model")
    marker = json.loads((tmp_path / "model" / MARKER).read_text())
    assert Prompt(**marker["prompt"]) == gemma.encoder().prompt.model_copy(
        update={"layout": "bos-image-text"}
    )
    assert marker["source"] == "source-vlm"
    assert marker["target"] == "target-gemma3_text-unigram"
    assert marker["streamed"] is True


def test_an_earlier_export_is_replaced(gemma: Port, llama: Port, tmp_path: Path) -> None:
    export(gemma, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("of the earlier export")
    export(llama, tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == FILES
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert config["text_config"]["model_type"] == "llama"


def test_a_foreign_folder_is_left_alone(gemma: Port, tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter-1.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match=r"1 files that no export wrote \(chapter-1.tex\)"):
        export(gemma, folder)
    assert names(tmp_path) == {"thesis"}
    assert (folder / "chapter-1.tex").read_text() == "years of work"


def test_a_file_in_the_place_is_left_alone(gemma: Port, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(RunFolderError, match="is a file"):
        export(gemma, tmp_path / "model")
    assert (tmp_path / "model").read_text() == "a file"


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    check_free(tmp_path / "model")
    with written_whole(tmp_path / "model") as partial:
        (partial / "a").write_text("1")
    assert names(tmp_path / "model") == {"a"}


def test_a_full_disk_is_found_before_anything_is_written(
    gemma: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**9, 10**9, 1000))
    with pytest.raises(SpaceError, match="0.00 MB free"):
        export(gemma, tmp_path / "model")
    assert names(tmp_path) == set()


def fails_after(calls: int, error: Exception) -> Any:
    """Return a stand-in for a file write that fails in the middle of the shards."""
    real, count = hf.write_shards, 0

    def write(folder: Path, shards: Any, task: Any) -> None:
        nonlocal count
        count += 1
        real(folder, shards[:1], task)
        if count >= calls:
            raise error

    return write


@pytest.mark.parametrize("earlier", [False, True])
def test_a_disk_that_fills_up_leaves_nothing(
    gemma: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool
) -> None:
    if earlier:
        export(gemma, tmp_path / "model")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(hf, "write_shards", fails_after(1, OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(SpaceError, match="no space left"):
        export(gemma, tmp_path / "model")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert names(tmp_path) == ({"model"} if earlier else set())


def test_any_other_failure_leaves_nothing_either(
    gemma: Port, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hf, "save_processor", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export(gemma, tmp_path / "model")
    assert names(tmp_path) == set()


def test_leftovers_of_a_killed_export_are_cleared(gemma: Port, tmp_path: Path) -> None:
    (tmp_path / ".model.partial").mkdir()
    (tmp_path / ".model.partial" / "model-00001-of-00009.safetensors").write_bytes(b"half")
    export(gemma, tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == FILES


def test_a_folder_that_cannot_take_its_place_brings_the_earlier_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    with written_whole(tmp_path / "model") as partial:
        (partial / MARKER).write_text("first")
    real = os.replace

    def refuse_the_new(source: Any, place: Any) -> None:
        if str(source).endswith(".partial"):
            raise PermissionError("no")
        real(source, place)

    monkeypatch.setattr(os, "replace", refuse_the_new)
    with pytest.raises(PermissionError), written_whole(tmp_path / "model") as partial:
        (partial / MARKER).write_text("second")
    assert (tmp_path / "model" / MARKER).read_text() == "first"
    assert names(tmp_path) == {"model"}
