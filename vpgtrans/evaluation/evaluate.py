"""One held-out measurement: loss, image gap, exact match, and every answer beside its references."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from vpgtrans.data.records import pair_id
from vpgtrans.errors import DataError
from vpgtrans.evaluation.generate import Generates, generate_answers
from vpgtrans.evaluation.loss import Pair, Scored, held_out_loss, image_gap
from vpgtrans.evaluation.match import is_match
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Evaluation
from vpgtrans.weights.disk import atomic_write_json, atomic_write_text

if TYPE_CHECKING:
    from vpgtrans.data.batches import Collator
    from vpgtrans.data.prompts import PromptEncoder

REPORT_FILE = "evaluation.json"
SAMPLES_FILE = "samples.jsonl"


class Evaluated(Scored, Generates, Protocol):
    """What can be evaluated (``vlm.forward.Trainee``)."""


@dataclass(frozen=True)
class EvaluationReport:
    """What was measured."""

    loss: float
    """Mean cross entropy of a held-out token."""
    image_gap: float | None
    """How much higher the loss is with shuffled images; None with a single image."""
    exact_match: float
    """Share of answers that equal a reference (see ``evaluation.match``)."""
    num_texts: int
    num_images: int
    samples: list[dict[str, Any]] = field(default_factory=list, repr=False)
    """Per text: id, prompt, answer, references, generated, match."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers, without the samples."""
        return {
            "loss": self.loss,
            "image_gap": self.image_gap,
            "exact_match": self.exact_match,
            "num_texts": self.num_texts,
            "num_images": self.num_images,
        }

    def save(self, folder: Path) -> None:
        """Write ``samples.jsonl``, then ``evaluation.json`` (its presence means that both are there)."""
        folder.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in self.samples)
        atomic_write_text(folder / SAMPLES_FILE, lines)
        atomic_write_json(folder / REPORT_FILE, self.to_dict())

    @classmethod
    def load(cls, folder: Path) -> "EvaluationReport":
        """Read what :meth:`save` wrote.

        Raises:
            DataError: There is no report in ``folder``.
        """
        path = folder / REPORT_FILE
        if not path.is_file():
            raise DataError(f"no {REPORT_FILE} in {folder}: run `vpgtrans evaluate` first")
        # not splitlines(): a generated text may hold other line separators, JSON escapes "\\n" alone
        lines = (folder / SAMPLES_FILE).read_text(encoding="utf-8").rstrip("\n").split("\n")
        samples = [json.loads(line) for line in lines if line]
        return cls(**json.loads(path.read_text(encoding="utf-8")), samples=samples)


def evaluate(
    trainee: Evaluated,
    encoder: "PromptEncoder",
    collator: "Collator",
    pairs: Sequence[Pair],
    spec: Evaluation,
    *,
    title: str = "evaluation",
    seed: int = 0,
    progress: Progress = SILENT,
) -> EvaluationReport:
    """Measure a model on held-out pairs.

    Args:
        trainee: The model; its modes are as before afterwards.
        encoder: Of texts.
        collator: Makes batches.
        pairs: All of them are used.
        spec: Batch size and longest answer.
        title: Of the steps.
        seed: Of the image shuffle.
        progress: Shows rates.

    Raises:
        DataError: There are no pairs.
    """
    size = spec.batch_size
    loss = held_out_loss(trainee, collator, pairs, size, progress, f"{title}: loss")
    images = {record.image.key for record, _ in pairs}
    gap = image_gap(trainee, collator, pairs, size, loss, seed, progress) if len(images) > 1 else None
    answers = generate_answers(
        trainee, collator, encoder, pairs, size, spec.max_new_tokens, progress, f"{title}: answers"
    )
    matches = [is_match(answer, text.accepted) for (_, text), answer in zip(pairs, answers, strict=True)]
    samples: list[dict[str, Any]] = [
        {
            "id": pair_id(record, text),
            "prompt": text.prompt,
            "answer": text.answer,
            "references": list(text.accepted),
            "generated": answer,
            "match": match,
        }
        for (record, text), answer, match in zip(pairs, answers, matches, strict=True)
    ]
    return EvaluationReport(loss, gap, sum(matches) / len(samples), len(samples), len(images), samples)
