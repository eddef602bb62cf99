"""Finding models: what is found, and what is said when nothing usable is there."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo
from safetensors.torch import save_file

from vpgtrans.errors import CheckpointError
from vpgtrans.weights import hub
from vpgtrans.weights.headers import tensor_infos
from vpgtrans.weights.locate import locate_model, read_json

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("{}")


def small_gguf(path: Path) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_local_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    touch(tmp_path, "model.safetensors")
    files = locate_model(str(tmp_path))
    assert (files.name, files.folder, files.gguf, files.hub) == (str(tmp_path), tmp_path, None, False)
    assert files.config() == {"model_type": "opt"}
    assert files.weight_files() == [tmp_path / "model.safetensors"]
    assert files.weight_map() is None


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    touch(tmp_path / "model", "config.json")
    assert locate_model("~/model").folder == tmp_path / "model"


def test_gguf_file_and_a_folder_with_just_one(tmp_path):
    path = small_gguf(tmp_path / "model.gguf")
    for name in (str(path), str(tmp_path)):
        files = locate_model(name)
        assert (files.folder, files.gguf) == (None, path)
        assert files.weight_files() == [path]
        assert files.weight_map() is None
    assert set(tensor_infos(locate_model(str(path)))) == {"token_embd.weight"}


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (("model.safetensors", "pytorch_model.bin"), ["model.safetensors"]),
        (("pytorch_model.bin", "tf_model.h5"), ["pytorch_model.bin"]),
        (
            ("model.safetensors", "adapter_model.safetensors", "consolidated.safetensors"),
            ["model.safetensors"],
        ),
    ],
)
def test_which_weights_are_taken(tmp_path, present, chosen):
    touch(tmp_path, "config.json", *present)
    assert [path.name for path in locate_model(str(tmp_path)).weight_files()] == chosen


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_shards_come_from_the_index(tmp_path, stem):
    weight_map = {"a": "part-2", "b": "part-1", "c": "part-2"}
    touch(tmp_path, "config.json", "part-1", "part-2", "part-3")
    (tmp_path / f"{stem}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    files = locate_model(str(tmp_path))
    assert files.weight_files() == [tmp_path / "part-1", tmp_path / "part-2"]
    assert files.weight_map() == weight_map


def test_a_whole_file_goes_before_an_index_as_in_transformers(tmp_path):
    touch(tmp_path, "config.json", "model.safetensors", "part-1")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "part-1"}}')
    assert locate_model(str(tmp_path)).weight_files() == [tmp_path / "model.safetensors"]


def test_folder_without_config_lists_what_it_found(tmp_path):
    touch(tmp_path, "model.safetensors", "README.md", *[f"file{i}.txt" for i in range(10)])
    with pytest.raises(CheckpointError, match=r"no config.json and no .gguf file.*README.md.*and 4 more"):
        locate_model(str(tmp_path))


def test_empty_folder(tmp_path):
    with pytest.raises(CheckpointError, match="holds nothing"):
        locate_model(str(tmp_path))


def test_adapter_folder(tmp_path):
    touch(tmp_path, "adapter_config.json", "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match="merge it into its base model first"):
        locate_model(str(tmp_path))


def test_folder_with_several_ggufs_asks_which(tmp_path):
    touch(tmp_path, "model-q4.gguf", "mmproj.gguf")
    with pytest.raises(CheckpointError, match="2 GGUF files.*mmproj.gguf, model-q4.gguf"):
        locate_model(str(tmp_path))


def test_split_gguf(tmp_path):
    parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    touch(tmp_path, *parts)
    for name in (tmp_path / parts[1], tmp_path):
        with pytest.raises(CheckpointError, match="one part of a split GGUF.*--merge"):
            locate_model(str(name))


def test_single_weight_file_asks_for_its_folder(tmp_path):
    touch(tmp_path, "model.safetensors")
    with pytest.raises(CheckpointError, match="Give the folder"):
        locate_model(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    "name",
    ["./model", "/no/such/model", "~/nothing/here", "a/b/c", "model.gguf", "folder/", "C:\\models\\opt"],
)
def test_path_that_does_not_exist_is_not_looked_for_on_the_hub(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError, match="looks like a path, but nothing is there"):
        locate_model(name)


@pytest.mark.parametrize("name", ["", "two words", "-x", "org/", "ö"])
def test_name_that_is_neither_path_nor_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(CheckpointError):
        locate_model(name)


def test_folder_without_weights(tmp_path):
    touch(tmp_path, "config.json", "tokenizer.json")
    with pytest.raises(CheckpointError, match="has a config.json but no weights.*tokenizer.json"):
        locate_model(str(tmp_path)).weight_files()


@pytest.mark.parametrize("content", ["{", "[1, 2]", "\udcff"])
def test_broken_config_names_the_file(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match="config.json"):
        locate_model(str(tmp_path)).config()


def test_json_that_is_missing(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_json(tmp_path / "none.json")


# ---- the hub, offline: the real client on a cache folder laid out as it lays it out


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Make an empty hub cache and switch the hub client to offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def snapshot(cache: Path, name: str) -> Path:
    repo = cache / f"models--{name.replace('/', '--')}"
    touch(repo / "refs")
    (repo / "refs" / "main").write_text(COMMIT)
    folder = repo / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_cached_hub_model(cache):
    folder = snapshot(cache, "org/model")
    touch(folder, "config.json")
    save_file({"x": torch.ones(2)}, folder / "model.safetensors")
    files = locate_model("org/model")
    assert (files.name, files.folder, files.hub, files.revision) == ("org/model", folder, True, None)
    assert set(tensor_infos(files)) == {"x"}


def test_uncached_hub_model_offline(cache):
    for name in ("org/model", "gpt2"):
        with pytest.raises(
            CheckpointError, match=f"'{name}' is not a local folder.*offline.*hf download {name}"
        ):
            locate_model(name)


def test_cached_config_without_weights_offline(cache):
    touch(snapshot(cache, "org/model"), "config.json")
    files = locate_model("org/model", weights=False)
    assert files.config() == {}
    with pytest.raises(CheckpointError, match="hf download org/model"):
        tensor_infos(files)


def test_cached_hub_repository_without_config(cache):
    touch(snapshot(cache, "org/model-GGUF"), "README.md")
    with pytest.raises(CheckpointError, match="no config.json.*README.md.*download one .gguf"):
        locate_model("org/model-GGUF")


# ---- what is asked of the hub


class Hub:
    """Stands for the hub's server: records the patterns asked for, and lays the files down."""

    def __init__(self, folder: Path, files: list[str]) -> None:
        self.folder, self.files, self.asked = folder, files, []

    def snapshot_download(self, name, revision, allow_patterns, ignore_patterns):
        self.asked.append(allow_patterns)
        for file in self.files:
            path = Path(file)
            wanted = any(path.match(pattern) for pattern in allow_patterns)
            if wanted and not any(path.match(pattern) for pattern in ignore_patterns):
                touch((self.folder / file).parent, path.name)
        return str(self.folder)


def fetched(tmp_path, monkeypatch, files, **options) -> set[str]:
    server = Hub(tmp_path / "snapshot", files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", server.snapshot_download)
    locate_model("org/model", **options)
    return {str(path.relative_to(server.folder)) for path in server.folder.rglob("*") if path.is_file()}


REPO = [
    "config.json",
    "tokenizer.json",
    "merges.txt",
    "model.safetensors",
    "pytorch_model.bin",
    "tf_model.h5",
]


def test_safetensors_are_fetched_and_bins_are_not(tmp_path, monkeypatch):
    expected = {"config.json", "tokenizer.json", "merges.txt", "model.safetensors"}
    assert fetched(tmp_path, monkeypatch, [*REPO, "consolidated.safetensors"]) == expected


def test_bins_are_fetched_where_there_is_nothing_else(tmp_path, monkeypatch):
    repo = [name for name in REPO if name != "model.safetensors"]
    assert fetched(tmp_path, monkeypatch, repo) == {*repo} - {"tf_model.h5"}


def test_without_weights_only_small_files_are_fetched(tmp_path, monkeypatch):
    expected = {"config.json", "tokenizer.json", "merges.txt"}
    assert fetched(tmp_path, monkeypatch, REPO, weights=False) == expected


def test_allow_overrides(tmp_path, monkeypatch):
    assert fetched(tmp_path, monkeypatch, REPO, allow=["config.json"]) == {"config.json"}


def http_error(kind):
    error = kind.__new__(kind)
    Exception.__init__(error, "404")
    return error


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (GatedRepoError, "is gated: accept its terms"),
        (RevisionNotFoundError, "has no revision 'v9'"),
        (RepositoryNotFoundError, "no model 'org/model' on the hub"),
        (ConnectionError, "cannot be reached"),
    ],
)
def test_every_refusal_of_the_hub_is_one_sentence(monkeypatch, kind, expected):
    def refuse(*args, **kwargs):
        raise http_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=expected) as caught:
        locate_model("org/model", revision="v9")
    assert "\n" not in str(caught.value)


def test_errors_of_the_http_library_are_network_errors():
    library = importlib.import_module(type(huggingface_hub.utils.get_session()).__module__.split(".")[0])
    assert issubclass(library.ConnectError, hub._network_errors())


def test_headers_of_a_hub_model_are_read_from_afar(tmp_path, monkeypatch):
    touch(tmp_path, "config.json")
    tensors = {"x": TensorInfo(dtype="BF16", shape=[3, 2], data_offsets=(0, 12))}
    metadata = SafetensorsRepoMetadata(
        metadata=None,
        sharded=False,
        weight_map={"x": "model.safetensors"},
        files_metadata={"model.safetensors": SafetensorsFileMetadata(metadata={}, tensors=tensors)},
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "get_safetensors_metadata", lambda *args, **kwargs: metadata)
    infos = tensor_infos(locate_model("org/model", weights=False))
    assert (infos["x"].dtype, infos["x"].shape, infos["x"].nbytes) == ("BF16", (3, 2), 12)
    assert infos["x"].file == tmp_path / "model.safetensors"


def test_finding_a_model_imports_nothing_heavy(tmp_path):
    touch(tmp_path, "config.json")
    script = (
        "import sys; from vpgtrans.weights import disk, headers, lazy, locate\n"
        "locate.locate_model(sys.argv[1])\n"
        "assert not {'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
