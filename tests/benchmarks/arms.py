"""Results of arms as ``run_transfer`` writes them, without any training."""

import json
from pathlib import Path
from typing import Any

from vpgtrans.recipe import Recipe


def fake_result(recipe: Recipe, folder: Path, losses: dict[str, float]) -> dict[str, Any]:
    """Write the ``result.json`` and the samples that a run of ``recipe`` would leave.

    Args:
        recipe: Of the arm.
        folder: Of the run.
        losses: Held-out loss at ``zero-step`` and after each stage; validation ends at the same value.
    """
    stages = [
        {
            "name": stage.name,
            "pairs": stage.max_steps * stage.batch_size,
            "seconds": 12.4,
            "peak_memory_mb": 1999.6,
            "validation": [[0, 0, 9.0], [stage.max_steps, 0, losses[stage.name]]],
            "trained": [
                {"part": part, "learning_rate": stage.peak_learning_rate if part in stage.parts else None}
                for part in ("qformer", "projector")
            ],
        }
        for stage in recipe.stages
    ]
    moments = ["zero-step", *(stage.name for stage in recipe.stages)]
    measured = {
        moment: {
            "loss": losses[moment],
            "image_gap": 0.25,
            "exact_match": 0.5,
            "num_texts": 3,
            "num_images": 2,
        }
        for moment in moments
    }
    result = {"stages": stages, "evaluations": measured if recipe.data.test else dict.fromkeys(moments, {})}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "model").mkdir(exist_ok=True)
    if recipe.data.test:
        samples = folder / "evaluation" / "zero-step" / "samples.jsonl"
        samples.parent.mkdir(parents=True, exist_ok=True)
        samples.write_text('{"prompt": "is it red?", "answer": "yes"}\n')
    return result
