"""Shards: bytes in equal bytes out, for every source, dtype and chunk size."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vpgtrans.export import shards
from vpgtrans.export.shards import Entry, file_entry, memory_entry, plan_shards, write_shards
from vpgtrans.progress import SILENT
from vpgtrans.weights.headers import file_infos


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "odd.bf16": torch.randn(3, generator=generator).bfloat16(),
        "table": torch.randn(37, 5, generator=generator),
        "half": torch.randn(4, 3, 2, generator=generator).half(),
        "double": torch.randn(7, generator=generator).double(),
        "ids": torch.arange(9),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "view": torch.randn(6, 4, generator=generator).t(),
    }


def write(folder: Path, entries: list[Entry], size: int = 10**9) -> None:
    with SILENT.task("test") as task:
        write_shards(folder, plan_shards(entries, size), task)


@pytest.mark.parametrize("chunk", [16, 64, 2**25])
@pytest.mark.parametrize("kind", ["memory", "safetensors", "bin"])
def test_every_tensor_comes_back_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, kind: str
) -> None:
    monkeypatch.setattr(shards, "CHUNK_BYTES", chunk)
    wanted = tensors()
    if kind == "memory":
        entries = [memory_entry(name, tensor) for name, tensor in wanted.items()]
    else:
        source = tmp_path / f"source.{kind}"
        if kind == "bin":
            torch.save({name: t.contiguous() for name, t in wanted.items()}, source)
        else:
            save_file({name: t.contiguous() for name, t in wanted.items()}, source)
        entries = [file_entry(name, info) for name, info in file_infos(source).items()]
    out = tmp_path / "out"
    out.mkdir()
    write(out, entries)
    found = load_file(out / "model-00001-of-00001.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cast_changes_floats_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(shards, "CHUNK_BYTES", 24)
    wanted = tensors()
    source = tmp_path / "source.safetensors"
    save_file({name: t.contiguous() for name, t in wanted.items()}, source)
    infos = file_infos(source)
    out = tmp_path / "out"
    out.mkdir()
    entries = [file_entry(name, info, dtype) for name, info in infos.items()]
    entries += [memory_entry(f"memory.{name}", tensor, dtype) for name, tensor in wanted.items()]
    write(out, entries)
    found = load_file(out / "model-00001-of-00001.safetensors")
    for name, tensor in wanted.items():
        cast = tensor.to(dtype) if tensor.is_floating_point() else tensor
        for key in (name, f"memory.{name}"):
            assert found[key].dtype == cast.dtype
            assert torch.equal(found[key], cast), key


def test_every_tensor_starts_at_a_multiple_of_its_element_size(tmp_path: Path) -> None:
    write(tmp_path, [memory_entry(name, tensor) for name, tensor in tensors().items()])
    path = tmp_path / "model-00001-of-00001.safetensors"
    for info in file_infos(path).values():
        width = info.nbytes // max(info.numel, 1) or 1
        assert info.offset % width == 0, info
    with safe_open(path, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def sized(name: str, num_bytes: int) -> Entry:
    return memory_entry(name, torch.zeros(num_bytes, dtype=torch.uint8))


def test_shards_keep_the_order_and_the_limit() -> None:
    planned = plan_shards([sized("a", 6), sized("b", 4), sized("c", 1), sized("d", 30), sized("e", 2)], 10)
    assert [[entry.name for entry in shard] for shard in planned] == [["a", "b"], ["c"], ["d"], ["e"]]


def test_the_index_names_every_tensor_and_the_total(tmp_path: Path) -> None:
    entries = [sized("a", 6), sized("b", 4), sized("c", 5)]
    write(tmp_path, entries, 10)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 15}
    assert index["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    assert sorted(load_file(tmp_path / "model-00002-of-00002.safetensors")) == ["c"]


def test_progress_counts_every_byte(tmp_path: Path) -> None:
    class Counter:
        done = 0.0

        def advance(self, amount: float = 1) -> None:
            self.done += amount

        def show(self, **values: str | float) -> None: ...

    entries = [memory_entry(name, tensor) for name, tensor in tensors().items()]
    counter = Counter()
    write_shards(tmp_path, plan_shards(entries, 100), counter)
    assert (
        counter.done
        == sum(entry.nbytes for entry in entries)
        == sum(t.numel() * t.element_size() for t in tensors().values())
    )


def test_a_source_that_gives_too_few_bytes_is_noticed(tmp_path: Path) -> None:
    whole = memory_entry("a", torch.zeros(8))
    short = Entry("a", whole.dtype, (9,), whole.chunks)
    with pytest.raises(RuntimeError, match="announced"):
        write(tmp_path, [short])
