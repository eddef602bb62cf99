"""A small world to transfer in: a tiny source VLM, a tiny target LLM, coloured squares with captions."""

import json
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from tests.tiny import save_tiny_blip2, save_tiny_llm

PALETTE = {"red": (220, 30, 30), "green": (20, 160, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}


def write_data(folder: Path, images: int = 12) -> Path:
    """Write coloured squares with two texts each, as a VQA JSONL."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(images):
        name, colour = list(PALETTE.items())[number % len(PALETTE)]
        Image.new("RGB", (16, 16), tuple(min(255, c + number) for c in colour)).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "what colour is the square?", "answer": name})
        rows.append({"image": f"{number}.png", "question": "what is it?", "answer": f"a {name} square"})
    file = folder / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def recipe_tree(source: Path, target: Path, train: Path, test: Path) -> dict[str, Any]:
    """Return a two-stage recipe that takes a second or two."""
    stage = {"learning_rate": 2e-3, "batch_size": 8, "micro_batch_size": 4, "save_steps": 1, "eval_steps": 2}
    return {
        "name": "tiny",
        "description": "tiny llama to tiny gemma3",
        "source": {"model": str(source)},
        "target": {"model": str(target)},
        "data": {
            "train": [{"path": str(train)}],
            "validation": [{"path": str(test)}],
            "test": [{"path": str(test)}],
        },
        "prompt": {"template": "Question: {prompt} Answer: {answer}", "max_text_tokens": 64},
        "converter": {"min_anchors": 10},
        "init": {"calibration_texts": 8},
        "stages": [
            {
                **stage,
                "name": "warmup",
                "train": ["projector"],
                "lr_multiplier": 5,
                "schedule": "constant",
                "epochs": 1,
            },
            {
                **stage,
                "name": "finetune",
                "train": ["qformer", "query_tokens", "vision_norm", "projector"],
                "max_steps": 3,
                "warmup_steps": 1,
            },
        ],
        "evaluation": {"batch_size": 8, "max_new_tokens": 4},
        "seed": 3,
    }


def make_world(
    root: Path,
    source_llm: str = "llama",
    target_llm: str = "gemma3_text",
    kind: Any = "unigram",
    **target: Any,
) -> Path:
    """Write models, data and ``recipe.yaml`` under ``root``; return the recipe."""
    source = save_tiny_blip2(root / "source", source_llm)
    llm = save_tiny_llm(root / "target", target_llm, kind, hidden=48, **target)
    train, test = write_data(root / "train"), write_data(root / "test", 6)
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_tree(source, llm, train, test)))
    return file
