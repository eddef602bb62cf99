"""Recorded losses of both stages: a change of the numbers is noticed, whatever caused it.

Recorded with ``VPGTRANS_WRITE_GOLDEN=1 pytest tests/training/test_golden.py`` and never otherwise: a
missing file fails.
"""

import json
import os
from pathlib import Path

import pytest

from tests.training.tiny_vlm import train_tiny_blip2
from vpgtrans.training.metrics import read_metrics

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("model_type", ["llama", "opt", "t5"])
def test_four_losses_a_stage(tmp_path, model_type):
    train_tiny_blip2(tmp_path / "run", tmp_path / "images", model_type)
    found: dict[str, dict[str, list[float]]] = {}
    for line in read_metrics(tmp_path / "run" / "metrics.jsonl"):
        stage = found.setdefault(line["stage"], {"loss": [], "grad_norm": [], "validation_loss": []})
        for key, values in stage.items():
            if key in line:
                values.append(line[key])
    assert [len(stage["loss"]) for stage in found.values()] == [4, 4]
    path = GOLDEN / f"tiny-blip2-{model_type}.json"
    if os.environ.get("VPGTRANS_WRITE_GOLDEN") == "1":
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    assert path.exists(), f"{path} is missing; see the head of this file"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == recorded.keys()
    for stage, values in recorded.items():
        for key, numbers in values.items():
            assert found[stage][key] == pytest.approx(numbers, rel=2e-3), (stage, key)
