"""Held-out measures: token loss, image gap, exact match, and the generated texts."""

from vpgtrans.evaluation.evaluate import EvaluationReport, evaluate
from vpgtrans.evaluation.generate import generate_answers
from vpgtrans.evaluation.loss import held_out_loss, image_gap
from vpgtrans.evaluation.match import is_match, normalise

__all__ = [
    "EvaluationReport",
    "evaluate",
    "generate_answers",
    "held_out_loss",
    "image_gap",
    "is_match",
    "normalise",
]
