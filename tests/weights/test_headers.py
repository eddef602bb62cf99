"""Headers: what a checkpoint holds, and what is said when it is broken."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests.tiny import tiny_llm
from tests.weights.builders import save_llm, write_safetensors, write_sparse
from vpgtrans.errors import CheckpointError
from vpgtrans.weights.headers import DTYPE_BYTES, TORCH_DTYPES, file_infos, tensor_infos
from vpgtrans.weights.locate import locate_model

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.fixture
def llm_folder(tmp_path: Path) -> Path:
    save_llm(tmp_path / "llm", max_shard_size="20KB")
    return tmp_path / "llm"


def every_dtype() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    values = torch.randint(0, 2, (3, 4))
    tensors = {name: values.to(getattr(torch, torch_name)) for name, torch_name in TORCH_DTYPES.items()}
    return tensors | {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 7), "vector": torch.arange(5)}


def test_header_agrees_with_the_safetensors_library(tmp_path):
    tensors = every_dtype()
    save_file(tensors, tmp_path / "all.safetensors", metadata={"format": "pt"})
    infos = file_infos(tmp_path / "all.safetensors")
    assert set(infos) == set(tensors)
    with safe_open(tmp_path / "all.safetensors", "pt") as reader:
        for name, info in infos.items():
            part = reader.get_slice(name)
            assert (info.shape, info.dtype) == (tuple(part.get_shape()), part.get_dtype())
            assert info.numel == tensors[name].numel()
            assert info.nbytes == tensors[name].numel() * tensors[name].element_size()


def test_every_dtype_has_its_size():
    assert set(DTYPE_BYTES) == set(TORCH_DTYPES)
    for name, size in DTYPE_BYTES.items():
        assert getattr(torch, TORCH_DTYPES[name]).itemsize == size


def test_shards_together_are_the_state_dict(llm_folder):
    state = tiny_llm().state_dict()
    infos = tensor_infos(locate_model(str(llm_folder)))
    assert {name: info.shape for name, info in infos.items()} == {n: tuple(t.shape) for n, t in state.items()}
    assert len({info.file for info in infos.values()}) > 2


@pytest.mark.parametrize("missing_bytes", [1, 23, 24])
def test_truncated_file_names_expected_and_found_bytes(tmp_path, missing_bytes):
    path = write_safetensors(tmp_path / "x.safetensors", GOOD, bytes(24))
    full = path.stat().st_size
    os.truncate(path, full - missing_bytes)
    with pytest.raises(CheckpointError, match="truncated") as caught:
        file_infos(path)
    assert str(path) in str(caught.value)
    assert f"expected {full:,} bytes" in str(caught.value)
    assert f"found {full - missing_bytes:,}" in str(caught.value)


@pytest.mark.parametrize(
    ("size", "expected"), [(0, "at least 8 bytes, found 0"), (5, "found 5"), (30, "found 30")]
)
def test_file_that_ends_inside_its_header(tmp_path, size, expected):
    path = write_safetensors(tmp_path / "x.safetensors", GOOD, bytes(24))
    os.truncate(path, size)
    with pytest.raises(CheckpointError, match=expected):
        file_infos(path)


BROKEN: dict[str, tuple[dict | bytes, bytes, str]] = {
    "bytes after the end": (GOOD, bytes(25), "bytes after the last tensor"),
    "not JSON": (b"{nonsense", b"", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "not valid JSON"),
    "a list": (b"[]", b"", "not a JSON object"),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4), "'a' is malformed"),
    "no object": ({"a": 3}, bytes(4), "'a' is malformed"),
    "three offsets": ({"a": {**GOOD["a"], "data_offsets": [0, 1, 2]}}, bytes(24), "'a' is malformed"),
    "wrong size": (
        {"a": {**GOOD["a"], "shape": [2, 4]}},
        bytes(24),
        r"needs 32 bytes, its header gives it 24",
    ),
    "a hole": (
        {**GOOD, "b": {"dtype": "U8", "shape": [2], "data_offsets": [26, 28]}},
        bytes(28),
        "'b' starts at byte",
    ),
    "overlap": (
        {**GOOD, "b": {"dtype": "U8", "shape": [2], "data_offsets": [22, 24]}},
        bytes(24),
        "'b' starts at byte",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_corrupt_header_is_refused_with_the_file_named(tmp_path, case):
    header, body, expected = BROKEN[case]
    path = write_safetensors(tmp_path / "x.safetensors", header, body)
    with pytest.raises(CheckpointError, match=expected) as caught:
        file_infos(path)
    assert str(path) in str(caught.value)


def test_a_text_file_is_not_a_safetensors_file(tmp_path):
    # a git-lfs pointer: what a clone without git-lfs leaves in place of the weights
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14\n")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        file_infos(path)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        file_infos(tmp_path / "none.safetensors")


def test_rewritten_file_is_read_again(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert set(file_infos(path)) == {"a"}
    save_file({"b": torch.zeros(3)}, path)
    assert set(file_infos(path)) == {"b"}


def test_index_that_names_missing_shards(llm_folder):
    index = json.loads((llm_folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    for shard in shards[:2]:
        (llm_folder / shard).unlink()
    with pytest.raises(CheckpointError) as caught:
        tensor_infos(locate_model(str(llm_folder)))
    assert f"names {len(shards)} weight files, but 2 of them are missing: {shards[0]}, {shards[1]}" in str(
        caught.value
    )


def test_index_that_lists_tensors_its_shards_lack(llm_folder):
    path = llm_folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.extra.weight"] = next(iter(index["weight_map"].values()))
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="lists 1 tensors.*'model.extra.weight'"):
        tensor_infos(locate_model(str(llm_folder)))


@pytest.mark.parametrize("content", ["{}", '{"weight_map": {}}', '{"weight_map": []}', "[1]", "{"])
def test_malformed_index(llm_folder, content):
    (llm_folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="model.safetensors.index.json"):
        tensor_infos(locate_model(str(llm_folder)))


def test_one_truncated_shard_among_good_ones(llm_folder):
    shard = sorted(llm_folder.glob("*.safetensors"))[1]
    os.truncate(shard, shard.stat().st_size - 10)
    with pytest.raises(CheckpointError, match=f"{shard.name} is truncated"):
        tensor_infos(locate_model(str(llm_folder)))


def test_sparse_7b_folder_is_read_without_torch(tmp_path):
    layers = {
        f"model.layers.{i}.{name}": ("BF16", shape, 2)
        for i in range(32)
        for name, shape in {"q_proj": [4096, 4096], "up_proj": [11008, 4096], "norm": [4096]}.items()
    }
    shards = [{"model.embed_tokens.weight": ("BF16", [32000, 4096], 2)}, layers]
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05d}-of-00002.safetensors"
        write_sparse(tmp_path / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    script = (
        "import sys, tracemalloc\n"
        "from vpgtrans.weights.headers import tensor_infos\n"
        "from vpgtrans.weights.locate import locate_model\n"
        "tracemalloc.start()\n"
        "files = locate_model(sys.argv[1]); files.config()\n"
        "infos = tensor_infos(files)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), 'a heavy import'\n"
        "assert tracemalloc.get_traced_memory()[1] < 5_000_000, 'too much memory'\n"
        "print(len(infos), sum(info.nbytes for info in infos.values()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = 2 * (32000 * 4096 + 32 * (4096 * 4096 + 11008 * 4096 + 4096))
    assert done.stdout.split() == ["97", str(expected)]


def save_bin(model: torch.nn.Module, folder: Path, **options: bool) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.save(model.state_dict(), folder / "pytorch_model.bin", **options)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_headers_equal_safetensors_headers(tmp_path, zipped):
    model = save_llm(tmp_path / "llm")
    save_bin(model, tmp_path / "bin", _use_new_zipfile_serialization=zipped)
    bins = tensor_infos(locate_model(str(tmp_path / "bin")))
    for name, info in tensor_infos(locate_model(str(tmp_path / "llm"))).items():
        assert (bins[name].dtype, bins[name].shape, bins[name].nbytes) == (
            info.dtype,
            info.shape,
            info.nbytes,
        )


def test_sharded_bins(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weight_map = {}
    for number, tensors in enumerate([{"a": torch.zeros(2)}, {"b": torch.zeros(3, 2)}]):
        torch.save(tensors, tmp_path / f"pytorch_model-{number}.bin")
        weight_map |= dict.fromkeys(tensors, f"pytorch_model-{number}.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    infos = tensor_infos(locate_model(str(tmp_path)))
    assert {name: info.shape for name, info in infos.items()} == {"a": (2,), "b": (3, 2)}


def test_truncated_bin(tmp_path):
    save_bin(tiny_llm(), tmp_path / "bin")
    path = tmp_path / "bin" / "pytorch_model.bin"
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(CheckpointError, match="truncated or corrupt") as caught:
        file_infos(path)
    assert f"{path.stat().st_size:,} bytes" in str(caught.value)


class Bomb:
    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (os.mkdir, (os.environ["BOMB_FOLDER"],))


def test_bin_with_code_inside_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB_FOLDER", str(tmp_path / "exploded"))
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(2), "b": Bomb()}, path)
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        file_infos(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match=str(path)):
        file_infos(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("content", "expected"), [([1], "found list"), ({"epoch": 3}, "only epoch")])
def test_bin_without_tensors(tmp_path, content, expected):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=expected):
        file_infos(tmp_path / "x.bin")
