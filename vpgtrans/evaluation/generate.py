"""Greedy answers for many texts, in batches of similar length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from vpgtrans.evaluation.loss import Pair
from vpgtrans.evaluation.modes import device_of, measuring
from vpgtrans.progress import SILENT, Progress

if TYPE_CHECKING:
    from torch import nn

    from vpgtrans.data.batches import Batch, Collator
    from vpgtrans.data.prompts import PromptEncoder


class Generates(Protocol):
    """What writes answers (``vlm.forward.Trainee``)."""

    module: "nn.Module"

    def generate(self, batch: "Batch", max_new_tokens: int, eos_ids: list[int]) -> list[list[int]]:
        """Return the new ids of each text."""


def generate_answers(
    trainee: Generates,
    collator: "Collator",
    encoder: "PromptEncoder",
    pairs: Sequence[Pair],
    batch_size: int,
    max_new_tokens: int,
    progress: Progress = SILENT,
    title: str = "answers",
) -> list[str]:
    """Return the greedy answer to every pair's prompt, in the order of ``pairs``.

    Batches are made of prompts of similar length (less padding); what is generated does not depend
    on the batch, up to the arithmetic of the device.

    Args:
        trainee: The model.
        collator: Makes batches.
        encoder: Says where answers end, and turns ids into text.
        pairs: Whose prompts are answered.
        batch_size: Prompts in a batch.
        max_new_tokens: Longest answer.
        progress: Shows the rate.
        title: Of the step.
    """
    device = device_of(trainee.module)
    lengths = [len(encoder.encode_prompt(text)) for _, text in pairs]
    order = sorted(range(len(pairs)), key=lambda number: lengths[number])
    answers = [""] * len(pairs)
    with measuring(trainee.module), progress.task(title, total=len(pairs), unit="texts") as task:
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            batch = collator([pairs[number] for number in numbers], for_generation=True).to(device)
            for number, ids in zip(
                numbers, trainee.generate(batch, max_new_tokens, encoder.stop_ids), strict=True
            ):
                answers[number] = encoder.decode_answer(ids)
            task.advance(len(numbers))
    return answers
