"""Export a 7B-sized port and print its peak memory: the LLM goes from file to file.

    python benchmarks/export_memory.py            # LLaMA-7B (13.5 GB) and EVA ViT-g, some minutes
    python benchmarks/export_memory.py --quick    # the same widths, 2 layers each, half a minute

Source and target are written first: random bytes for one layer, holes for the others (``--dense``: random
bytes everywhere), bfloat16. The export runs in a process of its own, whose peak resident memory is what
counts; afterwards the written tensors are compared with their sources by checksum. At most 2 GB are allowed.
"""

import argparse
import hashlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

LIMIT_GB = 2.0
ROOT = Path(__file__).resolve().parents[1]


def llama_tensors(
    layers: int, hidden: int = 4096, inner: int = 11008, vocab: int = 32000
) -> dict[str, list[int]]:
    """Return names and shapes of a LLaMA-7B."""
    tensors = {"model.embed_tokens.weight": [vocab, hidden]}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name in "qkvo":
            tensors[f"{prefix}self_attn.{name}_proj.weight"] = [hidden, hidden]
        tensors[f"{prefix}mlp.gate_proj.weight"] = [inner, hidden]
        tensors[f"{prefix}mlp.up_proj.weight"] = [inner, hidden]
        tensors[f"{prefix}mlp.down_proj.weight"] = [hidden, inner]
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = [hidden]
    return {**tensors, "model.norm.weight": [hidden], "lm_head.weight": [vocab, hidden]}


def write_checkpoint(folder: Path, tensors: dict[str, list[int]], shard_bytes: float, dense: bool) -> int:
    """Write bfloat16 safetensors shards with an index; return their size in bytes."""
    shards: list[dict[str, list[int]]] = [{}]
    sizes = [0]
    for name, shape in tensors.items():
        size = 2 * int(np.prod(shape))
        if sizes[-1] + size > shard_bytes and shards[-1]:
            shards.append({})
            sizes.append(0)
        shards[-1][name] = shape
        sizes[-1] += size
    weight_map = {}
    noise = np.random.default_rng(0)
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map.update(dict.fromkeys(shard, file))
        header, end = {}, 0
        for name, shape in shard.items():
            begin, end = end, end + 2 * int(np.prod(shape))
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            start = stream.tell()
            for name, entry in header.items():
                begin, stop = entry["data_offsets"]
                if dense or ".0." in name or "embed" in name or "lm_head" in name:
                    stream.seek(start + begin)
                    for _ in range(begin, stop, 2**24):
                        left = min(2**24, start + stop - stream.tell())
                        stream.write(noise.integers(0, 256, left, dtype=np.uint8).tobytes())
            stream.truncate(start + end)
    index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sum(sizes)


def build(place: Path, layers: int, vision_layers: int, dense: bool) -> int:
    """Write source VLM and target LLM; return the size of the LLM in bytes."""
    sys.path.insert(0, str(ROOT))
    import torch
    from transformers import (
        AutoModelForImageTextToText,
        Blip2Config,
        Blip2QFormerConfig,
        Blip2VisionConfig,
        BlipImageProcessorPil,
        LlamaConfig,
        OPTConfig,
    )

    from tests.tiny import tiny_tokenizer

    target, source = place / "llama-7b", place / "blip2-vit-g"
    target.mkdir()
    source.mkdir()
    config = LlamaConfig(num_hidden_layers=layers, dtype="bfloat16", architectures=["LlamaForCausalLM"])
    config.save_pretrained(target)
    tiny_tokenizer().save_pretrained(target)
    size = write_checkpoint(target, llama_tensors(layers), 5e9, dense)
    opt = OPTConfig(
        hidden_size=64, ffn_dim=64, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=64
    )
    vlm = Blip2Config(
        vision_config=Blip2VisionConfig(num_hidden_layers=vision_layers).to_dict(),
        qformer_config=Blip2QFormerConfig().to_dict(),
        text_config=opt.to_dict(),
        image_token_index=300,
        architectures=["Blip2ForConditionalGeneration"],
        dtype="bfloat16",
    )
    vlm.save_pretrained(source)
    BlipImageProcessorPil(size={"height": 224, "width": 224}).save_pretrained(source)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(vlm)
    write_checkpoint(source, {name: list(t.shape) for name, t in model.state_dict().items()}, 5e9, dense)
    write_trained(place / "trained.safetensors", model)
    return size


def write_trained(path: Path, model: object) -> None:
    """Write what a run has trained: projector (at the LLM's width) and query tokens, float32."""
    import torch
    from safetensors.torch import save_file

    width = model.config.qformer_config.hidden_size  # type: ignore[attr-defined]
    save_file(
        {
            "language_projection.weight": torch.randn(4096, width),
            "language_projection.bias": torch.randn(4096),
            "query_tokens": torch.randn(1, 32, width),
        },
        path,
    )


def run_export(place: Path) -> None:
    """Export, and print seconds and peak memory as JSON. Runs in a process of its own."""
    from vpgtrans.data.prompts import PromptEncoder
    from vpgtrans.export.hf import export_hf
    from vpgtrans.export.light import empty_port
    from vpgtrans.recipe import Prompt
    from vpgtrans.weights.locate import locate_model

    source, target = (locate_model(str(place / name)) for name in ("blip2-vit-g", "llama-7b"))
    started = time.monotonic()
    ported = empty_port(source, target)
    if ported is None:
        raise SystemExit("the benchmark's port needs weights in memory")
    encoder = PromptEncoder(
        ported.tokenizer, ported.image_token_id, ported.num_image_tokens, "bos-image-text", Prompt(), False
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    report = export_hf(
        ported, source, target, encoder, place / "model", weights=[place / "trained.safetensors"]
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    seconds = time.monotonic() - started
    facts = {"before_gb": before, "peak_gb": peak, "seconds": seconds, "bytes": report.num_bytes}
    sys.stdout.write(json.dumps(facts) + "\n")


def digest(path: Path, offset: int, size: int) -> str:
    """Return the checksum of a range of a file."""
    found = hashlib.blake2b()
    with path.open("rb") as stream:
        stream.seek(offset)
        while size:
            block = stream.read(min(size, 2**24))
            found.update(block)
            size -= len(block)
    return found.hexdigest()


def compare(place: Path) -> int:
    """Compare every written LLM tensor with its source by checksum; return how many there were."""
    from vpgtrans.weights.headers import tensor_infos
    from vpgtrans.weights.locate import locate_model

    written = tensor_infos(locate_model(str(place / "model")))
    sources = tensor_infos(locate_model(str(place / "llama-7b")))
    for name, info in sources.items():
        other = written[f"language_model.{name}"]
        same = digest(info.file, info.offset, info.nbytes) == digest(other.file, other.offset, other.nbytes)
        if not same or (info.dtype, info.shape) != (other.dtype, other.shape):
            raise SystemExit(f"{name} differs in the export")
    return len(sources)


def main() -> None:
    """Build, export in a fresh process, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 layers each instead of 32 and 39")
    parser.add_argument("--dense", action="store_true", help="random bytes everywhere, no holes")
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary folder")
    parser.add_argument("--export-only", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.export_only:
        run_export(options.export_only)
        return
    place = Path(tempfile.mkdtemp(prefix="export-memory-", dir=options.folder))
    try:
        size = build(place, *((2, 2) if options.quick else (32, 39)), options.dense)
        print(f"target LLM {size / 1e9:.2f} GB in bfloat16 shards")
        command = [sys.executable, __file__, "--export-only", str(place)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        facts = json.loads(done.stdout.strip().splitlines()[-1])
        print(f"exported {facts['bytes'] / 1e9:.2f} GB in {facts['seconds']:.0f} s")
        print(f"peak memory {facts['peak_gb']:.2f} GB ({facts['before_gb']:.2f} GB before the export)")
        print(f"{compare(place)} LLM tensors equal their sources bit for bit")
        if facts["peak_gb"] > LIMIT_GB:
            raise SystemExit(f"above the limit of {LIMIT_GB} GB")
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
