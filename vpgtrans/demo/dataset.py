"""Write generated pictures as a data folder: PNG files and one VQA JSONL file a split."""

import json
import os
from pathlib import Path

from vpgtrans.demo.pictures import draw_scene
from vpgtrans.demo.scenes import make_scene, texts
from vpgtrans.progress import SILENT, Progress

DEMO_SPLITS: dict[str, int] = {"train": 2400, "validation": 64, "test": 128}
"""Pictures a split in the demo; the splits share no seed."""


def write_dataset(
    folder: Path, splits: dict[str, int] | None = None, seed: int = 0, progress: Progress = SILENT
) -> dict[str, Path]:
    """Write pictures and texts; return the JSONL file of each split.

    One line is one text: ``{"image": "train/00007.png", "question": ..., "answer": ..., "kind": ...}``;
    the lines of one picture stand together.

    Args:
        folder: Where to write; files that are there are written over with the same content.
        splits: Pictures a split, by default ``DEMO_SPLITS``.
        seed: Another seed gives other pictures.
        progress: Where to report.
    """
    files = {}
    counts = DEMO_SPLITS if splits is None else splits
    with progress.task("drawing pictures", sum(counts.values()), "pictures") as task:
        for split, count in counts.items():
            (folder / split).mkdir(parents=True, exist_ok=True)
            lines = []
            for number in range(count):
                name = f"{split}/{number:05d}.png"
                scene = make_scene(f"{seed}/{split}/{number}")
                draw_scene(scene).save(folder / name, compress_level=1)
                lines += [
                    {"image": name, "question": text.question, "answer": text.answer, "kind": text.kind}
                    for text in texts(scene)
                ]
                task.advance()
            files[split] = _write_lines(folder / f"{split}.jsonl", lines)
    return files


def _write_lines(path: Path, lines: list[dict[str, str]]) -> Path:
    unfinished = path.with_name(path.name + ".tmp")
    unfinished.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(unfinished, path)
    return path
