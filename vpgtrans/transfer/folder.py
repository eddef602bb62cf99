"""The run folder: one place for the name of every artefact, and whose recipe it belongs to."""

import json
from pathlib import Path
from typing import Any

from vpgtrans.errors import RunFolderError
from vpgtrans.recipe import Recipe, check_recipe, differing_keys, dump_recipe
from vpgtrans.weights.disk import atomic_write_json, atomic_write_text

FREE_SECTIONS = frozenset({"description", "evaluation", "export", "report_to"})
"""Sections that may change between two calls on one folder: they do not touch what was trained."""


class RunFolder:
    """Paths of a run, and the claim of one recipe on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.resolved.yaml"
        self.plan = root / "plan.json"
        self.converter = root / "converter.safetensors"
        self.converter_facts = root / "converter.json"
        self.projector_init = root / "projector-init.safetensors"
        self.projector_facts = root / "projector-init.json"
        self.metrics = root / "metrics.jsonl"
        self.plots = root / "plots"
        self.evaluations = root / "evaluation"
        self.features = root / "features"
        self.reports = root / "data"
        self.model = root / "model"
        self.card = root / "README.md"
        self.result = root / "result.json"
        self.estimates = root / "estimates.jsonl"

    def stage(self, name: str) -> Path:
        """Return the folder of a stage."""
        return self.root / name

    def evaluation(self, moment: str) -> Path:
        """Return the folder of the evaluation at ``zero-step`` or after a stage."""
        return self.evaluations / moment

    def unreadable(self, split: str) -> Path:
        """Return the file that lists a split's unreadable images."""
        return self.reports / f"unreadable-{split}.json"

    def stored_recipe(self) -> Recipe | None:
        """Return the recipe that this folder belongs to, if it was claimed."""
        if not self.recipe.is_file():
            return None
        import yaml

        return check_recipe(yaml.safe_load(self.recipe.read_text(encoding="utf-8")))

    def problems(self, recipe: Recipe) -> list[str]:
        """Say why ``recipe`` may not use this folder; an empty list means it may.

        A folder with files that no vpgtrans command wrote is refused as well: nothing of a
        user's is written over.
        """
        stored = self.stored_recipe()
        if stored is not None:
            keys = [
                key
                for key in differing_keys(recipe, stored)
                if key.split(".")[0].split(":")[0] not in FREE_SECTIONS
            ]
            if keys:
                shown = "; ".join(keys[:5]) + (f"; and {len(keys) - 5} more" if len(keys) > 5 else "")
                return [f"{self.root} belongs to another recipe ({shown}); give a new --out folder"]
            return []
        if self.root.exists() and not self.root.is_dir():
            return [f"{self.root} is a file; give a folder with --out"]
        ours = {path.name for path in vars(self).values() if isinstance(path, Path)}
        foreign = (
            sorted(p.name for p in self.root.iterdir() if p.name not in ours) if self.root.is_dir() else []
        )
        if foreign:
            return [
                f"{self.root} already holds other files ({', '.join(foreign[:5])}); give a new --out folder"
            ]
        return []

    def claim(self, recipe: Recipe) -> None:
        """Write the resolved recipe into the folder.

        Raises:
            RunFolderError: if the folder belongs to another recipe; going on would mix the
                artefacts of two runs.
        """
        problems = self.problems(recipe)
        if problems:
            raise RunFolderError(problems[0])
        self.root.mkdir(parents=True, exist_ok=True)
        text = dump_recipe(recipe)
        if not self.recipe.is_file() or self.recipe.read_text(encoding="utf-8") != text:
            atomic_write_text(self.recipe, text)


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return a JSON artefact, or None if the step has not been run."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON artefact atomically."""
    atomic_write_json(path, facts)
