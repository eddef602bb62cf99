"""The package's dated tables: GPUs, models, published runs, speed-ups, data sets; YAML, read once."""

from functools import lru_cache
from importlib import resources
from typing import Any

import yaml


@lru_cache(maxsize=8)
def table(name: str) -> dict[str, Any]:
    """Return a table by its file's stem."""
    text = (resources.files("vpgtrans.cost.tables") / f"{name}.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
