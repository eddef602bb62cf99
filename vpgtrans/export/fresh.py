"""Ask a fresh process with stock transformers: the other side of a verification."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vpgtrans.errors import VerificationError
from vpgtrans.export.reference import Sample
from vpgtrans.export.usage import Usage

_READER = Path(__file__).with_name("stock_reader.py")


@dataclass(frozen=True)
class Answers:
    """What came back."""

    generated: list[list[int]]
    processor_ids: list[list[int] | None]
    logits: list[Tensor]
    """Per sample (T, V) float32."""
    pixels: list[Tensor]
    dtypes: Mapping[str, str]
    """Of every parameter."""
    transformers: str


@dataclass(frozen=True)
class StockProcess:
    """How to ask: each :meth:`ask` starts a process of its own."""

    folder: Path
    usage: Usage
    device: str
    max_new_tokens: int
    timeout: float

    def ask(self, samples: Sequence[Sample], llm_dtype: str | None) -> Answers:
        """Load the folder and answer the samples.

        Args:
            samples: Images and ids; the images travel as PNG files.
            llm_dtype: The LLM's dtype, with VPG and projector as stored; None: as ``from_pretrained`` does.

        Raises:
            VerificationError: The process failed or took too long.
        """
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            request = place / "request.json"
            content = {
                "folder": str(self.folder.resolve()),
                "device": self.device,
                "threads": torch.get_num_threads(),
                "max_new_tokens": self.max_new_tokens,
                "add_special_tokens": self.usage.add_special_tokens,
                "llm_dtype": llm_dtype,
                "samples": [self._row(sample, place) for sample in samples],
                "out": str(place / "answer"),
            }
            request.write_text(json.dumps(content), encoding="utf-8")
            _run_reader(request, self.timeout)
            return _read(place / "answer", samples)

    def _row(self, sample: Sample, place: Path) -> dict[str, Any]:
        image = place / f"{sample.name}.png"
        sample.image.save(image)
        spelled = self.usage.explicit or sample.text is None
        return {
            "name": sample.name,
            "image": str(image),
            "input_ids": sample.batch.input_ids[0].tolist(),
            "scored_ids": sample.scored_ids,
            "text": None if spelled else self.usage.text(sample.text or ""),
        }


def _read(out: Path, samples: Sequence[Sample]) -> Answers:
    facts = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    tensors = load_file(out.with_suffix(".safetensors"))
    if facts["foreign_modules"]:
        raise VerificationError(f"the fresh process imported {', '.join(facts['foreign_modules'])}")
    return Answers(
        generated=[row["generated"] for row in facts["samples"]],
        processor_ids=[row["processor_ids"] for row in facts["samples"]],
        logits=[tensors[f"logits.{sample.name}"] for sample in samples],
        pixels=[tensors[f"pixels.{sample.name}"] for sample in samples],
        dtypes=facts["dtypes"],
        transformers=facts["transformers"],
    )


def _run_reader(request: Path, timeout: float) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    try:
        done = subprocess.run(
            [sys.executable, "-I", str(_READER), str(request)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise VerificationError(f"stock transformers did not answer within {timeout:.0f} s") from error
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise VerificationError(f"stock transformers cannot load the export: {last[0]}")
