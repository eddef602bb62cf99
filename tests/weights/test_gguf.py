"""GGUF: our header parser against the gguf package's reader, and broken files."""

import os
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from tests.tiny import tiny_llm, tiny_tokenizer
from tests.weights.builders import write_llama_gguf
from vpgtrans.errors import CheckpointError
from vpgtrans.weights.gguf_config import write_skeleton
from vpgtrans.weights.gguf_header import read_gguf_header
from vpgtrans.weights.headers import tensor_infos
from vpgtrans.weights.lazy import iter_tensors, read_tensor
from vpgtrans.weights.locate import locate_model

QUANTISED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "BF16")


@pytest.fixture
def gguf_file(tmp_path: Path) -> Path:
    """Write a file with every kind of field, several quantisations and an odd alignment."""
    path = tmp_path / "mixed.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_custom_alignment(64)
    writer.add_uint8("u8", 7)
    writer.add_int16("i16", -5)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", -0.25)
    writer.add_uint64("u64", 1 << 40)
    writer.add_bool("flag", True)
    writer.add_string("text", "grün")
    writer.add_array("words", ["a", "", "längst"] * 5)
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("floats", [0.5, 1.5])
    values = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    writer.add_tensor("f32", values)
    writer.add_tensor("f16", values[:3].astype(np.float16))
    writer.add_tensor("vector", values[0])
    writer.add_tensor("cube", np.arange(2 * 3 * 32, dtype=np.float32).reshape(2, 3, 32))
    for name in QUANTISED:
        kind = gguf.GGMLQuantizationType[name]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_header_agrees_with_the_gguf_package(gguf_file):
    ours, theirs = read_gguf_header(gguf_file), gguf.GGUFReader(gguf_file)
    assert ours.fields["u8"] == 7
    assert ours.fields["i16"] == -5
    assert ours.fields["f32"] == 0.5
    assert ours.fields["f64"] == -0.25
    assert ours.fields["u64"] == 1 << 40
    assert ours.fields["flag"] is True
    assert ours.fields["text"] == "grün"
    assert ours.fields["general.architecture"] == "llama"
    assert ours.lengths == {"words": 15, "numbers": 3, "floats": 2}
    assert len(ours.tensors) == len(theirs.tensors)
    for tensor, expected in zip(ours.tensors, theirs.tensors, strict=True):
        assert tensor.name == expected.name
        assert tensor.type_name == expected.tensor_type.name
        assert tensor.shape == tuple(reversed(expected.shape.tolist()))
        assert tensor.offset == expected.data_offset
        assert tensor.nbytes == expected.n_bytes


def test_tensors_are_dequantised_as_the_gguf_package_does(gguf_file):
    infos = tensor_infos(locate_model(str(gguf_file)))
    for tensor in gguf.GGUFReader(gguf_file).tensors:
        expected = torch.from_numpy(
            np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        )
        info = infos[tensor.name]
        assert torch.equal(read_tensor(info), expected.reshape(info.shape))
        for rows in (slice(1, 3), slice(0, 1), slice(2, 2), slice(1, None)):
            part = read_tensor(info, rows)
            assert part.dtype == torch.float32
            assert torch.equal(part, expected.reshape(info.shape)[rows])


def test_iter_tensors_streams_all(gguf_file):
    infos = tensor_infos(locate_model(str(gguf_file)))
    streamed = dict(iter_tensors(locate_model(str(gguf_file))))
    assert {name: tuple(t.shape) for name, t in streamed.items()} == {n: i.shape for n, i in infos.items()}


def test_integer_tensor_that_gguf_cannot_dequantise(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tensor("ids", np.arange(32, dtype=np.int32).reshape(1, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'ids'.*quantised as I32"):
        read_tensor(tensor_infos(locate_model(str(path)))["ids"])


def test_truncated_data_names_both_sizes(gguf_file):
    full = max(tensor.offset + tensor.nbytes for tensor in read_gguf_header(gguf_file).tensors)
    os.truncate(gguf_file, full - 1)
    with pytest.raises(CheckpointError, match="truncated") as caught:
        read_gguf_header(gguf_file)
    assert f"expected at least {full:,} bytes by its header, found {full - 1:,}" in str(caught.value)


@pytest.mark.parametrize("size", [24, 40, 100, 300, 600])
def test_file_that_ends_inside_its_header(gguf_file, size):
    os.truncate(gguf_file, size)
    with pytest.raises(CheckpointError, match=f"within the {size} bytes found") as caught:
        read_gguf_header(gguf_file)
    assert str(gguf_file) in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 4, 23])
def test_file_too_short_for_anything(gguf_file, size):
    os.truncate(gguf_file, size)
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        read_gguf_header(gguf_file)


def patched(path: Path, offset: int, raw: bytes) -> Path:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(raw)] = raw
    path.write_bytes(content)
    return path


def test_other_magic(gguf_file):
    with pytest.raises(CheckpointError, match="starts with b'GGML'"):
        read_gguf_header(patched(gguf_file, 0, b"GGML"))


@pytest.mark.parametrize(
    ("offset", "raw", "expected"),
    [
        (4, struct.pack("<I", 1), "version 1 is not supported"),
        (4, struct.pack(">I", 3), "version 50331648"),
        (16, struct.pack("<Q", 1 << 60), "header cannot be read"),
        (24, struct.pack("<Q", 1 << 50), "a string would end at byte"),
    ],
)
def test_corrupt_header(gguf_file, offset, raw, expected):
    with pytest.raises(CheckpointError, match=expected):
        read_gguf_header(patched(gguf_file, offset, raw))


def test_absurd_number_of_dimensions(gguf_file):
    name = b"\x04" + bytes(7) + b"cube"
    start = gguf_file.read_bytes().index(name) + len(name)
    with pytest.raises(CheckpointError, match="4,000,000,000 dimensions"):
        read_gguf_header(patched(gguf_file, start, struct.pack("<I", 4_000_000_000)))


def test_config_is_what_transformers_reads(tmp_path):
    model = tiny_llm("llama", tie_word_embeddings=False)
    path = write_llama_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer())
    config = locate_model(str(path)).config()
    for key in ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_key_value_heads"):
        assert config[key] == getattr(model.config, key)
    assert config["architectures"] == ["LlamaForCausalLM"]
    config["vocab_size"] = 0  # a caller's change must not reach the cache
    assert locate_model(str(path)).config()["vocab_size"] == model.config.vocab_size


@pytest.mark.parametrize("vocab_size", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_config_equals_the_slow_reading_of_the_whole_file(tmp_path, tied, vocab_size):
    model = tiny_llm("llama", tie_word_embeddings=tied, rope_theta=5e4)
    path = write_llama_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer(), vocab_size=vocab_size)
    ours = locate_model(str(path)).config()
    theirs = AutoConfig.from_pretrained(tmp_path, gguf_file=path.name).to_dict()
    differing = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert differing <= {"architectures", "_name_or_path"}
    assert ours["tie_word_embeddings"] is tied
    assert ours["vocab_size"] == 310


def test_skeleton_has_the_fields_and_names_but_neither_tokens_nor_weights(tmp_path):
    model = tiny_llm("llama", vocab_size=2000)
    path = write_llama_gguf(tmp_path / "tiny.gguf", model, tiny_tokenizer(), vocab_size=False)
    header = read_gguf_header(path)
    write_skeleton(path, header, tmp_path / "skeleton.gguf", 2000)
    skeleton = read_gguf_header(tmp_path / "skeleton.gguf")
    assert skeleton.fields == {**header.fields, "llama.vocab_size": 2000}
    assert skeleton.lengths == {}
    assert [tensor.name for tensor in skeleton.tensors] == [tensor.name for tensor in header.tensors]
    assert [field for field in gguf.GGUFReader(tmp_path / "skeleton.gguf").fields if "tokens" in field] == []
    assert (tmp_path / "skeleton.gguf").stat().st_size < path.stat().st_size // 10


def test_config_of_a_file_with_another_alignment_and_arrays(gguf_file, tmp_path):
    header = read_gguf_header(gguf_file)
    write_skeleton(gguf_file, header, tmp_path / "skeleton.gguf", None)
    skeleton = read_gguf_header(tmp_path / "skeleton.gguf")
    assert skeleton.lengths == header.lengths
    assert skeleton.fields == {k: v for k, v in header.fields.items() if k != "general.alignment"}
    reader = gguf.GGUFReader(tmp_path / "skeleton.gguf")
    assert [tensor.name for tensor in reader.tensors] == [tensor.name for tensor in header.tensors]


def test_vocabulary_size_of_a_family_whose_mapping_lacks_it(tmp_path):
    path = tmp_path / "gpt2.gguf"
    writer = gguf.GGUFWriter(str(path), "gpt2")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_token_list([f"t{index}" for index in range(77)])
    writer.add_tensor("token_embd.weight", np.zeros((77, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    config = locate_model(str(path)).config()
    assert config["vocab_size"] == 77
    assert config["vocab_size"] == AutoConfig.from_pretrained(tmp_path, gguf_file=path.name).vocab_size
    assert config["architectures"] == ["GPT2LMHeadModel"]


def test_config_of_an_unknown_architecture(tmp_path):
    path = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(str(path), "no-such-architecture")
    writer.add_tensor("token_embd.weight", np.zeros((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="transformers cannot read the GGUF file"):
        locate_model(str(path)).config()
