"""Reload an export in a fresh process with stock transformers and compare it with the run's own model.

Two loads where dtypes differ. *As trained*: the LLM in the run's dtype, VPG and projector as stored;
logits and greedy answers must be the run's. *As a user loads it*: ``from_pretrained`` without
arguments; where that casts VPG and projector to the LLM's half precision the answers may differ, and
the report says by how much. Every sample stands alone in its batch, so equal code gives equal bits.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import CheckpointError, DataError, VerificationError
from vpgtrans.export.card import add_verification
from vpgtrans.export.folder import MARKER
from vpgtrans.export.fresh import Answers, StockProcess
from vpgtrans.export.reference import Sample, own_answers
from vpgtrans.export.usage import Usage
from vpgtrans.progress import SILENT, Progress
from vpgtrans.vlm.forward import Trainee

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}
"""Largest difference of a logit allowed as trained, relative to the largest logit; 0 is what is expected."""
LOADED_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.25, "float16": 0.05}
"""The same for a user's load, by its dtype: half precision rounds VPG and projector, so this only catches
a model that is wrong (a random part gives differences of the size of the logits)."""
_PIXEL_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Comparison:
    """One load of the folder against the run's model."""

    dtype: str
    """Of the LLM."""
    max_difference: float
    """Largest absolute difference of a logit; NaN if either side has one."""
    max_logit: float
    equal_answers: int


@dataclass(frozen=True)
class VerifyReport:
    """What the fresh process found."""

    num_samples: int
    as_trained: Comparison | None
    """None if the export was cast to half precision, so that the run's own numbers cannot be had from it."""
    as_loaded: Comparison
    pixel_difference: float
    """Largest difference between the processor's pixels and the run's."""
    prompts_compared: int
    equal_prompts: int
    """Prompts for which the card's call of the processor gives the run's ids."""
    transformers: str

    @property
    def max_difference(self) -> float:
        """Largest logit difference of the stricter comparison that could be made."""
        return (self.as_trained or self.as_loaded).max_difference

    def to_dict(self) -> dict[str, Any]:
        """Return it for ``result.json``."""
        return {**asdict(self), "max_difference": self.max_difference}

    def lines(self) -> list[str]:
        """Return it as sentences for the card and the console."""
        main = self.as_trained or self.as_loaded
        text = [
            f"Reloaded in a fresh process with transformers {self.transformers}, without vpgtrans: "
            f"{self.num_samples} samples, largest logit difference {main.max_difference:.3g} (largest logit "
            f"{main.max_logit:.3g}), {main.equal_answers} of {self.num_samples} greedy answers equal."
        ]
        if main != self.as_loaded:
            user = self.as_loaded
            text.append(
                f"As `from_pretrained` loads it ({user.dtype}): largest logit difference "
                f"{user.max_difference:.3g}, {user.equal_answers} of {self.num_samples} answers equal."
            )
        return text


def verify_export(
    folder: Path,
    trainee: Trainee,
    encoder: PromptEncoder,
    pairs: Sequence[tuple[Record, TextPair]],
    *,
    max_new_tokens: int = 16,
    timeout: float = 3600,
    progress: Progress = SILENT,
) -> VerifyReport:
    """Compare an export with the model in memory, and write the outcome into its card.

    Args:
        folder: What ``export_hf`` wrote.
        trainee: The run's own model, on the device on which both are run.
        encoder: The run's.
        pairs: A few images with texts.
        max_new_tokens: Longest answer.
        timeout: Seconds that the fresh process may take.
        progress: Shows the steps.

    Raises:
        VerificationError: Logits beyond the tolerance, other answers, other pixels, or other token ids.
        CheckpointError: ``folder`` is no export of ours.
        DataError: No pairs.
    """
    if not pairs:
        raise DataError(
            "there is no sample to verify the export with: give test, validation or training data"
        )
    marker = _read_marker(folder)
    device = str(next(trainee.module.parameters()).device)
    stock = StockProcess(folder, Usage(**marker["usage"]), device, max_new_tokens, timeout)
    with progress.task("verifying the export in a fresh process", total=3, unit="steps") as task:
        samples = own_answers(trainee, encoder, pairs, max_new_tokens)
        task.advance()
        loaded = stock.ask(samples, None)
        as_loaded = _compare(samples, loaded)
        task.advance()
        run_dtype = str(trainee.ported.llm.dtype).removeprefix("torch.")
        as_trained: Comparison | None = None
        if marker["as_trained"] and set(loaded.dtypes.values()) == {"float32"} == {run_dtype}:
            as_trained = as_loaded
        elif marker["as_trained"]:
            as_trained = _compare(samples, stock.ask(samples, run_dtype))
        task.advance()
    prompts = [
        ids == sample.batch.input_ids[0].tolist()
        for sample, ids in zip(samples, loaded.processor_ids, strict=True)
        if ids is not None
    ]
    pixels = zip(loaded.pixels, (sample.batch.pixel_values for sample in samples), strict=True)
    report = VerifyReport(
        num_samples=len(samples),
        as_trained=as_trained,
        as_loaded=as_loaded,
        pixel_difference=_largest(_distance(theirs, ours) for theirs, ours in pixels),
        prompts_compared=len(prompts),
        equal_prompts=sum(prompts),
        transformers=loaded.transformers,
    )
    _judge(report, folder)
    add_verification(folder, report.lines())
    return report


def _judge(report: VerifyReport, folder: Path) -> None:
    """Raise for every way in which the export is not the run's model."""
    problems = []
    if not report.pixel_difference <= _PIXEL_TOLERANCE:
        problems.append(f"its processor's pixels differ by up to {report.pixel_difference:.3g}")
    if report.equal_prompts < report.prompts_compared:
        problems.append(
            f"its processor gives other token ids for {report.prompts_compared - report.equal_prompts} of "
            f"{report.prompts_compared} prompts"
        )
    problems += _beyond(report.as_loaded, LOADED_TOLERANCE, "as from_pretrained loads it")
    exact = report.as_trained
    if exact is not None:
        problems += _beyond(exact, TOLERANCE, "with the run's dtypes")
        if exact.equal_answers < report.num_samples:
            problems.append(
                f"{report.num_samples - exact.equal_answers} of {report.num_samples} greedy answers differ"
            )
    if problems:
        raise VerificationError(f"the export in {folder} is not the run's model: {'; '.join(problems)}")


def _beyond(found: Comparison, tolerance: Mapping[str, float], how: str) -> list[str]:
    allowed = tolerance[found.dtype] * max(found.max_logit, 1.0)
    if found.max_difference <= allowed:  # false for NaN too
        return []
    return [f"{how}, logits differ by up to {found.max_difference:.3g} ({allowed:.3g} allowed)"]


def _read_marker(folder: Path) -> dict[str, Any]:
    path = folder / MARKER
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {MARKER}, so it is no export of vpgtrans")
    marker: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return marker


def _compare(samples: Sequence[Sample], answers: Answers) -> Comparison:
    pairs = list(zip(samples, answers.logits, strict=True))
    dtypes = [dtype for name, dtype in answers.dtypes.items() if name.startswith("language_model.")]
    return Comparison(
        dtype=max(set(dtypes), key=dtypes.count),
        max_difference=_largest(_distance(theirs, sample.logits_TV) for sample, theirs in pairs),
        max_logit=_largest(float(sample.logits_TV.abs().max()) for sample in samples),
        equal_answers=sum(
            sample.answer_ids == ids for sample, ids in zip(samples, answers.generated, strict=True)
        ),
    )


def _distance(left: Tensor, right: Tensor | None) -> float:
    """Return the largest difference; infinite for other shapes, NaN where either is NaN."""
    if right is None or left.shape != right.shape:
        return math.inf
    return float((left.float() - right.float().cpu()).abs().max())


def _largest(values: Iterable[float]) -> float:
    """Return the largest value; NaN if there is one (``max`` would lose it)."""
    found = list(values)
    return math.nan if any(math.isnan(value) for value in found) else max(found)
