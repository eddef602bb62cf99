"""Seconds and peak memory of a ridge converter between two 7B-sized embedding tables.

``python -m benchmarks.converter [--quick] [--json]`` writes two model folders (random bf16 embedding
tables inside shards of ordinary 7B size, whose other tensors are holes), then, in a fresh process, reads
the tables with ``load_embedding_table`` and fits and measures the converter. Beside it: the authors'
procedure (SGD on the cosine of caption tokens, batch 4096). Its time is that of a few steps times the
2,700 steps that it takes on their captions (guide methods.md A3); loading their two LLMs is left out.

The tables hold random numbers, in which there is nothing to find: the metrics mean nothing here.

Dimension key: V = vocabulary rows, S = source width, T = target width.
"""

import argparse
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vpgtrans import recipe
from vpgtrans.alignment.anchors import Anchors
from vpgtrans.alignment.converter import Converter, fit_converter
from vpgtrans.alignment.cosine_sgd import cosine_sgd
from vpgtrans.alignment.metrics import peak_memory_mb
from vpgtrans.alignment.rows import anchor_rows
from vpgtrans.alignment.tables import EmbeddingTable, load_embedding_table
from vpgtrans.weights.locate import locate_model

AUTHORS_STEPS = 2700
AUTHORS_BATCH = 4096
MB = 2**20


@dataclass(frozen=True)
class Size:
    """Rows and widths of the two tables, and how many tokens they share."""

    source_rows: int
    source_width: int
    target_rows: int
    target_width: int
    anchors: int
    sgd_steps: int


FULL = Size(50_272, 4096, 32_000, 4096, anchors=30_000, sgd_steps=3)
QUICK = Size(12_000, 768, 8_000, 1024, anchors=7_500, sgd_steps=20)


def write_model(folder: Path, rows: int, width: int, seed: int, layers: int = 32) -> int:
    """Write a LLaMA folder of two bf16 shards with real embeddings and holes elsewhere; return its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": 11008 * width // 4096,
        "num_hidden_layers": layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    }
    (folder / "config.json").write_text(json.dumps(config))
    inner = int(str(config["intermediate_size"]))
    shapes = {
        f"model.layers.{i}.mlp.{name}_proj.weight": shape
        for i in range(layers)
        for name, shape in (("gate", (inner, width)), ("up", (inner, width)), ("down", (width, inner)))
    }
    first = dict(list(shapes.items())[: len(shapes) // 2])
    second = {key: shape for key, shape in shapes.items() if key not in first}
    table = "model.embed_tokens.weight"
    files = {
        "model-00001-of-00002.safetensors": {**first, table: (rows, width)},
        "model-00002-of-00002.safetensors": second,
    }
    index = {key: name for name, part in files.items() for key in part}
    total = sum(_write_shard(folder / name, part, table, seed) for name, part in files.items())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return total


def _write_shard(file: Path, shapes: dict[str, tuple[int, int]], filled: str, seed: int) -> int:
    header: dict[str, Any] = {}
    end = 0
    for key, (rows, width) in shapes.items():
        header[key] = {"dtype": "BF16", "shape": [rows, width], "data_offsets": [end, end + 2 * rows * width]}
        end += 2 * rows * width
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = torch.Generator().manual_seed(seed)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(encoded)) + encoded)
        start = stream.tell()
        if filled in header:
            rows, width = shapes[filled]
            stream.seek(start + header[filled]["data_offsets"][0])
            for done in range(0, rows, 4096):
                part = torch.randn(min(4096, rows - done), width, generator=generator) * 0.02
                stream.write(part.bfloat16().view(torch.uint8).numpy().tobytes())
        stream.truncate(start + end)
    return end


def shared_tokens(size: Size, seed: int) -> Anchors:
    """Pair random rows, all of them word starts: the largest fit that two such vocabularies allow."""
    generator = torch.Generator().manual_seed(seed)
    source_ids = torch.randperm(size.source_rows, generator=generator)[: size.anchors]
    target_ids = torch.randperm(size.target_rows, generator=generator)[: size.anchors]
    return Anchors(source_ids, target_ids, torch.ones(size.anchors, dtype=torch.bool))


def measure_ridge(folder: Path, size: Size) -> dict[str, Any]:
    """Read both tables and fit: what ``vpgtrans convert --method ridge`` does after pairing."""
    started, used = time.perf_counter(), time.process_time()
    source, target = _tables(folder)
    loaded = time.perf_counter() - started
    converter: Converter = fit_converter(source, target, shared_tokens(size, 3), recipe.Converter(), seed=0)
    converter.save(folder / "converter")
    return {
        "seconds": time.perf_counter() - started,
        "seconds_reading": loaded,
        "cpu_seconds": time.process_time() - used,
        "peak_memory_mb": peak_memory_mb(),
        "anchors": size.anchors,
        "fitted": converter.metrics["num_fitted"],
    }


def measure_sgd(folder: Path, size: Size) -> dict[str, Any]:
    """Time a few steps of the authors' procedure on the same tables."""
    rows = anchor_rows(*_tables(folder), shared_tokens(size, 3))
    batch = rows.select(torch.arange(AUTHORS_BATCH))  # one epoch over it is one step
    cosine_sgd(batch, 1, learning_rate=5.0, batch_size=AUTHORS_BATCH, seed=0)
    started = time.perf_counter()
    fit = cosine_sgd(batch, size.sgd_steps, learning_rate=5.0, batch_size=AUTHORS_BATCH, seed=0)
    per_step = (time.perf_counter() - started) / size.sgd_steps
    return {
        "seconds_per_step": per_step,
        "timed_steps": size.sgd_steps,
        "steps": AUTHORS_STEPS,
        "seconds": per_step * AUTHORS_STEPS,
        "peak_memory_mb": peak_memory_mb(),
        "last_loss": fit.losses[-1],
    }


def _tables(folder: Path) -> tuple[EmbeddingTable, EmbeddingTable]:
    source, target = (load_embedding_table(locate_model(str(folder / name))) for name in ("source", "target"))
    return source, target


def _in_fresh_process(folder: Path, what: str, quick: bool, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.converter", "--child", what, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*command, "--quick"] if quick else command,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(result.stdout.splitlines()[-1]))


def run(folder: Path, quick: bool, threads: int) -> dict[str, Any]:
    """Write the folders, measure both procedures, and compare."""
    size = QUICK if quick else FULL
    seconds = time.perf_counter()
    total = write_model(folder / "source", size.source_rows, size.source_width, seed=1)
    total += write_model(folder / "target", size.target_rows, size.target_width, seed=2)
    ridge = _in_fresh_process(folder, "ridge", quick, threads)
    sgd = _in_fresh_process(folder, "sgd", quick, threads)
    return {
        "size": asdict(size),
        "model_bytes": total,
        "threads": threads,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "ridge": ridge,
        "authors_sgd": sgd,
        "sgd_over_ridge_seconds": sgd["seconds"] / ridge["seconds"],
        "benchmark_seconds": time.perf_counter() - seconds,
    }


def main(arguments: list[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="tables of 12,000 x 768 and 8,000 x 1024")
    parser.add_argument("--json", action="store_true", help="print one JSON line")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to write the models (default: a temporary folder)")
    parser.add_argument("--child", choices=("ridge", "sgd"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        size = QUICK if options.quick else FULL
        result = (measure_ridge if options.child == "ridge" else measure_sgd)(options.folder, size)
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as temporary:
        result = run(options.folder or Path(temporary), options.quick, options.threads)
    if options.json:
        print(json.dumps(result))
        return
    ridge, sgd, size = result["ridge"], result["authors_sgd"], result["size"]
    print(
        f"tables {size['source_rows']} x {size['source_width']} -> {size['target_rows']} x "
        f"{size['target_width']}, {size['anchors']} anchors, {result['threads']} threads"
    )
    print(
        f"ridge:         {ridge['seconds']:8.1f} s ({ridge['seconds_reading']:.1f} s of it reading; "
        f"{ridge['cpu_seconds']:.1f} CPU seconds), peak {ridge['peak_memory_mb']:.0f} MB"
    )
    ratio = result["sgd_over_ridge_seconds"]
    print(
        f"authors' SGD:  {sgd['seconds']:8.1f} s = {sgd['steps']} steps x {sgd['seconds_per_step']:.3f} s "
        f"({sgd['timed_steps']} timed), peak {sgd['peak_memory_mb']:.0f} MB, {ratio:.0f}x"
    )


if __name__ == "__main__":
    main()
