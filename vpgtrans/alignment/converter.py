"""The word converter: an affine map from the source LLM's embedding space to the target's.

Dimension key: S = source-LLM width, T = target-LLM width.
"""

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from vpgtrans import __version__, recipe
from vpgtrans.alignment.anchors import Anchors
from vpgtrans.alignment.closed_form import cosine_optimum, moments_of, procrustes, ridge
from vpgtrans.alignment.cosine_sgd import cosine_sgd, default_epochs, occurrences
from vpgtrans.alignment.metrics import measure, peak_memory_mb
from vpgtrans.alignment.rows import AnchorRows, anchor_rows, split_anchors
from vpgtrans.alignment.tables import EmbeddingTable
from vpgtrans.errors import AlignmentError, CheckpointError, ShapeError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.weights.disk import atomic_save_tensors, atomic_write_json, sha256_file

TENSORS_FILE = "converter.safetensors"
FACTS_FILE = "converter.json"
COSINE_STEPS = 6
UNFITTED = frozenset({"random", "identity", "from-file"})
"""Methods that look at no anchors; where there are any, they are still measured on them."""


@dataclass
class Converter:
    """``g(x) = W x + b`` from source embeddings to target embeddings.

    Attributes:
        weight_TS: (T, S), float32 after a fit or a load.
        bias_T: (T,), same dtype.
        method: how it was made.
        metrics: numbers of anchors, held-out metrics, models and widths, seconds, memory.
    """

    weight_TS: Tensor
    bias_T: Tensor
    method: str
    metrics: dict[str, Any] = field(default_factory=dict)

    def __call__(self, x_S: Tensor) -> Tensor:
        """Convert (..., S) to (..., T), in the dtype of the weight."""
        return linear(x_S.to(self.weight_TS.dtype), self.weight_TS, self.bias_T)

    @property
    def widths(self) -> tuple[int, int]:
        """Source and target width."""
        return self.weight_TS.shape[1], self.weight_TS.shape[0]

    def save(self, folder: Path) -> None:
        """Write ``converter.safetensors`` (float32), then ``converter.json`` with its checksum."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            "weight": self.weight_TS.detach().float().cpu().contiguous(),
            "bias": self.bias_T.detach().float().cpu().contiguous(),
        }
        atomic_save_tensors(folder / TENSORS_FILE, tensors)
        width_s, width_t = self.widths
        facts = {
            "method": self.method,
            "source_width": width_s,
            "target_width": width_t,
            "metrics": self.metrics,
            "versions": {"vpgtrans": __version__, "torch": torch.__version__},
            "sha256": sha256_file(folder / TENSORS_FILE),
        }
        atomic_write_json(folder / FACTS_FILE, facts)

    @classmethod
    def load(cls, path: Path) -> "Converter":
        """Read a converter folder, or a ``.safetensors`` file with ``weight`` and ``bias`` alone.

        Raises:
            CheckpointError: if a file is missing, truncated, or does not belong to the other.
        """
        tensors_file = path / TENSORS_FILE if path.is_dir() else path
        facts_file = tensors_file.with_name(FACTS_FILE)
        tensors = _read_tensors(tensors_file)
        if not path.is_dir() and not facts_file.is_file():
            return cls(tensors["weight"], tensors["bias"], "from-file")
        facts = _read_facts(facts_file)
        found = sha256_file(tensors_file)
        if facts["sha256"] != found:
            raise CheckpointError(
                f"{tensors_file} has checksum {found[:12]}, {facts_file.name} beside it expects "
                f"{str(facts['sha256'])[:12]}; the two were not written together: make the converter again"
            )
        return cls(tensors["weight"], tensors["bias"], str(facts["method"]), dict(facts["metrics"]))


def fit_converter(
    source: EmbeddingTable,
    target: EmbeddingTable,
    anchors: Anchors,
    spec: recipe.Converter,
    seed: int,
    progress: Progress = SILENT,
) -> Converter:
    """Make the converter that a recipe asks for and measure it on held-out anchors.

    Held-out anchors never enter the fit; the converter that is returned is the one that was measured.

    Args:
        source: the source LLM's embedding table.
        target: the target LLM's.
        anchors: pairs of token ids that stand for the same text.
        spec: method and its parameters.
        seed: of the hold-out, of ``random`` and of ``cosine-sgd``.
        progress: told of every anchor that was read.

    Raises:
        AlignmentError: if there are too few anchors to fit on, ids beyond a table, or NaN in one.
        ShapeError: ``identity`` between different widths, or a file made for other widths.
    """
    started = time.perf_counter()
    rows = anchor_rows(source, target, anchors)
    check_anchor_count(len(rows), spec, source.model, target.model)
    split = split_anchors(
        rows,
        anchors.word_start,
        held_out=spec.held_out,
        enough=spec.min_anchors,
        seed=seed,
        fit_on_all=spec.method == "cosine-sgd",
    )
    weight_TS, bias_T, facts = _make(split.training, spec, seed, progress)
    converter = Converter(weight_TS.float().contiguous(), bias_T.float().contiguous(), spec.method)
    measured = measure(converter, split, seed)
    converter.metrics = {
        "num_anchors": len(rows),
        "num_fitted": 0 if spec.method in UNFITTED else len(split.training),
        "num_held_out": len(split.held_out),
        "word_start_only": split.word_start_only and spec.method not in {*UNFITTED, "cosine-sgd"},
        **(asdict(measured) if measured else {}),
        **facts,
        "seed": seed,
        "source_model": source.model,
        "source_width": rows.widths[0],
        "target_model": target.model,
        "target_width": rows.widths[1],
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_mb": peak_memory_mb(),
    }
    return converter


def check_anchor_count(
    number: int, spec: recipe.Converter, source: str = "the source", target: str = "the target"
) -> None:
    """Refuse to fit a converter on too few anchors.

    Args:
        number: anchors found.
        spec: says how many there must be, and whether the method needs any.
        source: name of the source model, for the message.
        target: name of the target model.

    Raises:
        AlignmentError: with both numbers and what to do.
    """
    if spec.method in UNFITTED or number >= spec.min_anchors:
        return
    other = "captions" if spec.pairs == "vocabulary" else "vocabulary"
    raise AlignmentError(
        f"only {number} anchors (tokens that both vocabularies share) between {source} and {target}, "
        f"converter.min_anchors is {spec.min_anchors}; try converter.pairs: {other} (--pairs {other}), "
        "lower converter.min_anchors, or set init.projector to captions or random"
    )


def _make(
    rows: AnchorRows, spec: recipe.Converter, seed: int, progress: Progress
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return weight (T, S), bias (T,) and what else is worth recording."""
    match spec.method:
        case "ridge":
            return *_ridge(rows, spec, progress), {"ridge": spec.ridge}
        case "procrustes":
            with progress.task("gather anchors", len(rows), "anchors") as task:
                moments = moments_of(rows, task)
            progress.note(f"singular values of a matrix of {rows.widths[0]} x {rows.widths[1]}")
            return *procrustes(moments), {}
        case "cosine":
            start = _ridge(rows, spec, progress)
            with progress.task("cosine optimum", len(rows) * (COSINE_STEPS + 1), "anchors") as task:
                fit = cosine_optimum(rows, start, damping=spec.ridge, steps=COSINE_STEPS, task=task)
            return fit.weight_TS, fit.bias_T, {"ridge": spec.ridge, "training_losses": list(fit.losses)}
        case "cosine-sgd":
            return _cosine_sgd(rows, spec, seed, progress)
        case "random":
            return *_random(rows, seed), {}
        case "identity":
            return *_identity(rows), {}
        case "from-file":
            return _from_file(rows, spec)


def _ridge(rows: AnchorRows, spec: recipe.Converter, progress: Progress) -> tuple[Tensor, Tensor]:
    with progress.task("gather anchors", len(rows), "anchors") as task:
        moments = moments_of(rows, task)
    return ridge(moments, spec.ridge)


def _cosine_sgd(
    rows: AnchorRows, spec: recipe.Converter, seed: int, progress: Progress
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    epochs = spec.epochs or default_epochs(rows)
    with progress.task("cosine SGD", epochs * occurrences(rows.weights), "pairs") as task:
        fit = cosine_sgd(rows, epochs, spec.learning_rate, spec.batch_size, seed, task)
    facts = {"epochs": epochs, "learning_rate": spec.learning_rate, "batch_size": spec.batch_size}
    return fit.weight_TS, fit.bias_T, {**facts, "training_losses": list(fit.losses)}


def _random(rows: AnchorRows, seed: int) -> tuple[Tensor, Tensor]:
    """Draw a weight with variance 1 / S (LeCun), which keeps lengths; no bias."""
    width_s, width_t = rows.widths
    generator = torch.Generator().manual_seed(seed)
    weight_TS = torch.randn(width_t, width_s, generator=generator) * width_s**-0.5
    device = rows.source_VS.device
    return weight_TS.to(device), torch.zeros(width_t, device=device)


def _identity(rows: AnchorRows) -> tuple[Tensor, Tensor]:
    width_s, width_t = rows.widths
    if width_s != width_t:
        raise ShapeError(
            f"converter.method identity needs equal widths, but the source's is {width_s} and the target's "
            f"{width_t}; use method ridge"
        )
    device = rows.source_VS.device
    return torch.eye(width_s, device=device), torch.zeros(width_s, device=device)


def _from_file(rows: AnchorRows, spec: recipe.Converter) -> tuple[Tensor, Tensor, dict[str, Any]]:
    converter = Converter.load(Path(str(spec.file)))
    if converter.widths != rows.widths:
        raise ShapeError(
            f"the converter in {spec.file} goes from width {converter.widths[0]} to {converter.widths[1]}, "
            f"the models have {rows.widths[0]} and {rows.widths[1]}; was it made for other LLMs?"
        )
    device = rows.source_VS.device
    facts = {"file": str(spec.file), "file_method": converter.method}
    return converter.weight_TS.to(device), converter.bias_T.to(device), facts


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise CheckpointError(f"no converter at {file}; `vpgtrans convert` makes one")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(
            f"{file} is truncated or corrupt ({error}); make the converter again"
        ) from error
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        raise CheckpointError(
            f"{file} is no converter: it needs weight (T, S) and bias (T,), and has {shapes}"
        )
    return {"weight": weight.float(), "bias": bias.float()}


def _read_facts(file: Path) -> dict[str, Any]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file} is missing; the converter was not written to its end") from error
    except ValueError as error:
        raise CheckpointError(
            f"{file} is truncated or no JSON ({error}); make the converter again"
        ) from error
    if not isinstance(facts, dict) or not {"sha256", "method", "metrics"} <= facts.keys():
        raise CheckpointError(f"{file} lacks sha256, method or metrics; make the converter again")
    return facts
