"""Reading single tensors and rows: bit-equal to torch's own view of the same weights."""

import itertools
import math
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.tiny import tiny_llm
from tests.weights.builders import save_llm, write_safetensors
from tests.weights.test_headers import every_dtype
from vpgtrans.errors import CheckpointError
from vpgtrans.weights.headers import TensorInfo, file_infos
from vpgtrans.weights.lazy import fetch_shard, iter_tensors, read_tensor
from vpgtrans.weights.locate import ModelFiles, locate_model


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_every_dtype_is_read_bit_equal(tmp_path):
    tensors = every_dtype()
    save_file(tensors, tmp_path / "all.safetensors")
    for name, info in file_infos(tmp_path / "all.safetensors").items():
        value = read_tensor(info)
        assert value.dtype == tensors[name].dtype
        assert value.shape == tensors[name].shape
        assert torch.equal(bits(value), bits(tensors[name]))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.uint8])
@pytest.mark.parametrize("shape", [(5, 3), (5,), (4, 2, 3), (1, 7), (0, 3), (3, 0)])
def test_every_range_of_rows_is_the_slice_of_the_whole(tmp_path, shape, dtype, kind):
    tensor = (torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) + 1).to(dtype)
    path = tmp_path / f"x.{kind}"
    content = {"before": torch.ones(3), "x": tensor, "z": torch.ones(5)}
    torch.save(content, path) if kind == "bin" else save_file(content, path)
    info = file_infos(path)["x"]
    ends = [None, *range(-6, 7)]
    for start, stop in itertools.product(ends, ends):
        part = read_tensor(info, slice(start, stop))
        assert part.dtype == dtype
        assert torch.equal(part, tensor[start:stop])


def test_steps_and_rows_of_a_scalar_are_a_programming_error(tmp_path):
    save_file({"x": torch.ones(4, 2), "scalar": torch.tensor(1.0)}, tmp_path / "x.safetensors")
    infos = file_infos(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="contiguous"):
        read_tensor(infos["x"], slice(0, 4, 2))
    with pytest.raises(ValueError, match="contiguous"):
        read_tensor(infos["scalar"], slice(0, 1))


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_result_owns_its_memory(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    content = {"x": torch.ones(4, 2)}
    torch.save(content, path) if kind == "bin" else save_file(content, path)
    before = path.read_bytes()
    part = read_tensor(file_infos(path)["x"], slice(0, 2))
    assert part.untyped_storage().nbytes() == 16
    part.fill_(7)
    assert path.read_bytes() == before


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}])
def test_iter_tensors_is_the_state_dict(tmp_path, options):
    model = save_llm(tmp_path, **options)
    streamed = list(iter_tensors(locate_model(str(tmp_path))))
    assert len(streamed) == len(dict(streamed))
    assert set(dict(streamed)) == set(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in streamed)


def test_iter_tensors_of_a_bin(tmp_path):
    model = tiny_llm()
    (tmp_path / "config.json").write_text("{}")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    streamed = dict(iter_tensors(locate_model(str(tmp_path))))
    assert set(streamed) == set(model.state_dict())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in streamed.items())


def test_file_that_shrinks_after_its_header_was_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(100)}, path)
    info = file_infos(path)["x"]
    os.truncate(path, path.stat().st_size - 40)
    with pytest.raises(CheckpointError, match="expected 400 bytes there, found 360"):
        read_tensor(info)


def test_file_that_vanishes_after_its_header_was_read(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(100)}, path)
    info = file_infos(path)["x"]
    path.unlink()
    with pytest.raises(CheckpointError, match="is not there.*'x'"):
        read_tensor(info)


def test_unknown_dtype_is_named(tmp_path):
    header = {"x": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}
    path = write_safetensors(tmp_path / "x.safetensors", header, bytes(3))
    with pytest.raises(CheckpointError, match="'x'.*F6_E2M3"):
        read_tensor(file_infos(path)["x"])


def test_fetch_shard_leaves_local_models_alone(tmp_path):
    files = ModelFiles("local", tmp_path, None, None)
    info = TensorInfo("x", "F32", (1,), tmp_path / "none.safetensors")
    assert fetch_shard(files, info) is info


def test_fetch_shard_fetches_the_one_file_of_a_hub_model(tmp_path, monkeypatch):
    asked = []

    def download(name: str, file_name: str, revision: str | None) -> str:
        asked.append((name, file_name, revision))
        save_file({"x": torch.ones(3)}, tmp_path / file_name)
        return str(tmp_path / file_name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    files = ModelFiles("org/model", tmp_path, None, "main", hub=True)
    remote = TensorInfo("x", "F32", (3,), Path(tmp_path / "model-00001-of-00002.safetensors"), 0, 12)
    fetched = fetch_shard(files, remote)
    assert asked == [("org/model", "model-00001-of-00002.safetensors", "main")]
    assert torch.equal(read_tensor(fetched), torch.ones(3))
    assert fetch_shard(files, fetched) is fetched
    assert len(asked) == 1
