"""Model folders and GGUF files for the tests of reading weights."""

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.tiny import tiny_llm, tiny_tokenizer

HEADS, KV_HEADS = 4, 2


def save_llm(folder: Path, model: PreTrainedModel | None = None, **save: Any) -> PreTrainedModel:
    """Save a tiny LLM (llama unless given) with its tokenizer."""
    model = tiny_llm() if model is None else model
    model.save_pretrained(folder, **save)
    tiny_tokenizer().save_pretrained(folder)
    return model


def write_safetensors(path: Path, header: dict[str, Any] | bytes, body: bytes = b"") -> Path:
    """Write a file with exactly this header, correct or not."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return path


def write_sparse(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> Path:
    """Write a safetensors file whose tensors (dtype, shape, bytes per element) are holes on the disk."""
    header, end = {}, 0
    for name, (dtype, shape, itemsize) in tensors.items():
        begin, end = end, end + int(np.prod(shape)) * itemsize
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    write_safetensors(path, header)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size + end)
    return path


def write_llama_gguf(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, vocab_size: bool = True
) -> Path:
    """Write a tiny llama with a byte-level tokenizer as a GGUF: Q8_0 embeddings, F32 otherwise.

    ``vocab_size=False`` leaves that field out, so that only the token list tells it.
    """
    config = model.config
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    if vocab_size:
        writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, tokenizer, config.vocab_size)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.detach().float().numpy()
        if name == "model.embed_tokens.weight":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor("token_embd.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_gguf_name(name), _permuted(name, array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int) -> None:
    pieces = {index: piece for piece, index in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids)
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([pieces.get(index, f"[PAD{index}]") for index in range(rows)])
    writer.add_token_types([3 if index in special or index not in pieces else 1 for index in range(rows)])
    writer.add_token_merges([" ".join(merge) for merge in content["model"]["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)


def _gguf_name(name: str) -> str:
    names = {
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    if name in names:
        return names[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{names[rest.removesuffix('.weight')]}.weight"


def _permuted(name: str, array: np.ndarray) -> np.ndarray:
    """Reorder query and key rows from the half-split rotary layout to GGUF's interleaved one."""
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
    if not heads:
        return array
    rows, width = array.shape
    return np.ascontiguousarray(
        array.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
    )
