"""Writing whole or not at all, disk space, and checksums."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from vpgtrans.errors import SpaceError
from vpgtrans.weights.disk import (
    atomic_save_tensors,
    atomic_write_json,
    atomic_write_text,
    need_space,
    replacing,
    sha256_file,
    sha256_tensors,
)

Usage = namedtuple("Usage", "total used free")


def free_bytes(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(Path(path)) or Usage(0, 0, free))
    return asked


def test_enough_space_is_silent(tmp_path, monkeypatch):
    free_bytes(monkeypatch, 1000)
    need_space(tmp_path, 1000, "The export")


@pytest.mark.parametrize(
    ("needed", "free", "numbers"),
    [
        (14_000_000_000, 3_210_000_000, ("14.00 GB", "3.21 GB")),
        (2_500_000, 1_000_000, ("2.50 MB", "1.00 MB")),
    ],
)
def test_too_little_space_names_both_numbers(tmp_path, monkeypatch, needed, free, numbers):
    asked = free_bytes(monkeypatch, free)
    with pytest.raises(SpaceError) as caught:
        need_space(tmp_path / "not" / "yet", needed, "The export")
    assert asked == [tmp_path]
    assert str(caught.value).startswith(
        f"The export needs {numbers[0]}, but {tmp_path} has only {numbers[1]} free"
    )


def test_text_and_json(tmp_path):
    atomic_write_text(tmp_path / "a" / "b.txt", "größer\n")
    assert (tmp_path / "a" / "b.txt").read_text(encoding="utf-8") == "größer\n"
    content = {"ü": [1, None, 2.5]}
    atomic_write_json(tmp_path / "c.json", content)
    raw = (tmp_path / "c.json").read_text(encoding="utf-8")
    assert json.loads(raw) == content
    assert "ü" in raw
    assert raw.endswith("}\n")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["b.txt", "c.json"]


def test_rights_are_those_of_an_ordinary_file(tmp_path):
    (tmp_path / "ordinary").write_text("")
    atomic_write_text(tmp_path / "ours", "x")
    ours, ordinary = ((tmp_path / name).stat().st_mode for name in ("ours", "ordinary"))
    assert stat.S_IMODE(ours) == stat.S_IMODE(ordinary)


def write_half(path: Path, error: Exception) -> None:
    """Begin to write a file, check that the destination is untouched, and fail."""
    before = path.read_bytes() if path.exists() else None
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert (path.read_bytes() if path.exists() else None) == before
        raise error


class Unwritable:
    """json cannot write this."""


def test_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    atomic_write_json(path, {"old": 1})
    with pytest.raises(TypeError):
        atomic_write_json(path, {"new": Unwritable()})
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path, RuntimeError("half way"))
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text()) == {"old": 1}


def test_full_disk_while_writing(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(SpaceError, match="No space left on the disk while writing") as caught:
        write_half(path, OSError(errno.ENOSPC, "No space left on device"))
    assert str(path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_os_errors_pass_through(tmp_path):
    with pytest.raises(PermissionError), replacing(tmp_path / "a.txt"):
        raise PermissionError(errno.EACCES, "Permission denied")
    assert list(tmp_path.iterdir()) == []


def test_tensors_round_trip_with_metadata(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "plain": base,
        "shared": base,
        "view": base[1:],
        "transposed": base.T,
        "expanded": torch.ones(1, 3).expand(4, 3),
        "parameter": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 2),
        "other empty": torch.empty(0),
    }
    atomic_save_tensors(tmp_path / "t.safetensors", tensors, {"step": "7"})
    with safe_open(tmp_path / "t.safetensors", "pt") as reader:
        assert reader.metadata() == {"format": "pt", "step": "7"}
        assert set(reader.keys()) == set(tensors)
        for name, value in tensors.items():
            assert torch.equal(reader.get_tensor(name), value)
    assert [item.name for item in tmp_path.iterdir()] == ["t.safetensors"]


def test_tensors_need_space_before_anything_is_written(tmp_path, monkeypatch):
    free_bytes(monkeypatch, 399)
    with pytest.raises(SpaceError, match="Writing t.safetensors needs"):
        atomic_save_tensors(tmp_path / "new" / "t.safetensors", {"a": torch.ones(100)})
    assert list(tmp_path.iterdir()) == []


def test_full_disk_as_safetensors_reports_it(tmp_path, monkeypatch):
    def full(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(SpaceError, match="while writing"):
        atomic_save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})
    assert list(tmp_path.iterdir()) == []


def test_other_safetensors_errors_pass_through(tmp_path, monkeypatch):
    def broken(tensors: object, path: Path, metadata: object) -> None:
        raise SafetensorError("something else")

    monkeypatch.setattr(safetensors.torch, "save_file", broken)
    with pytest.raises(SafetensorError, match="something else"):
        atomic_save_tensors(tmp_path / "t.safetensors", {"a": torch.ones(2)})


def test_file_checksum(tmp_path):
    content = os.urandom((1 << 22) + 17)
    (tmp_path / "x").write_bytes(content)
    assert sha256_file(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def tensors_for_checksum() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"b": torch.randn(2, 3), "a": torch.arange(4, dtype=torch.int16), "empty": torch.empty(0, 3)}


def test_tensor_checksum_does_not_depend_on_order_or_layout():
    tensors = tensors_for_checksum()
    expected = sha256_tensors(tensors.items())
    assert sha256_tensors(reversed(list(tensors.items()))) == expected
    tensors["b"] = torch.nn.Parameter(tensors["b"].T.contiguous().T)
    assert sha256_tensors(iter(tensors.items())) == expected


def changed() -> dict[str, dict[str, torch.Tensor]]:
    tensors = tensors_for_checksum()
    bumped = tensors["b"].clone()
    bumped[1, 2] = torch.nextafter(bumped[1, 2], torch.tensor(9.0))
    return {
        "one bit": tensors | {"b": bumped},
        "shape": tensors | {"b": tensors["b"].reshape(3, 2)},
        "dtype": tensors | {"b": tensors["b"].view(torch.int32)},
        "name": {"c" if name == "b" else name: value for name, value in tensors.items()},
        "swapped": tensors | {"a": tensors["b"], "b": tensors["a"]},
        "missing": {"b": tensors["b"], "a": tensors["a"]},
        "empty shape": tensors | {"empty": torch.empty(3, 0)},
        "values": tensors | {"a": tensors["a"].clone().fill_(-1)},
    }


@pytest.mark.parametrize("change", changed())
def test_tensor_checksum_sees_every_change(change):
    assert sha256_tensors(changed()[change].items()) != sha256_tensors(tensors_for_checksum().items())


def test_checksum_of_nothing_differs_from_an_empty_tensor():
    assert sha256_tensors([]) != sha256_tensors([("x", torch.empty(0))])
