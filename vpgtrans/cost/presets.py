"""Configs by name: a preset of this package, a local folder or GGUF file, or the hub's small files."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vpgtrans.cost.system import System
from vpgtrans.cost.tables import table
from vpgtrans.errors import CheckpointError, EstimateError
from vpgtrans.weights.locate import locate_model


def preset_names() -> list[str]:
    """Return the names of all presets."""
    tables = table("models")
    return [*tables["llms"], *tables["vlms"]]


def config_of(name: str, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """Return a model's parsed ``config.json`` and where it came from; never a weight.

    What is on this machine comes first, then a preset, then the hub.

    Raises:
        EstimateError: it is neither local, nor a preset, nor reachable; names the presets.
    """
    if Path(name).expanduser().exists():
        files = locate_model(name, revision, weights=False)
        return files.config(), "local config"
    preset = preset_config(name)
    if preset is not None:
        return preset, "preset"
    try:
        return locate_model(name, revision, weights=False).config(), "hub config"
    except CheckpointError as error:
        near = difflib.get_close_matches(name.rpartition("/")[2].lower(), preset_names(), n=2, cutoff=0.5)
        hint = f" (nearest: {', '.join(near)})" if near else ""
        raise EstimateError(
            f"no config of '{name}': {error} Presets that work offline{hint}: {', '.join(preset_names())}"
        ) from error


def preset_config(name: str) -> dict[str, Any] | None:
    """Return the config of a preset by name or hub id, or None."""
    tables = table("models")
    for key, row in tables["llms"].items():
        if name == key or name in row["aliases"]:
            return dict(row["config"])
    for key, row in tables["vlms"].items():
        if name == key or name in row["aliases"]:
            return _vlm_config(row["llm"])
    return None


def preset_name(name: str) -> str | None:
    """Return the preset that a name or hub id means; for a VLM that of its LLM."""
    tables = table("models")
    for key, row in tables["llms"].items():
        if name == key or name in row["aliases"]:
            return str(key)
    for key, row in tables["vlms"].items():
        if name == key or name in row["aliases"]:
            return str(row["llm"])
    return None


def published_system(run: Mapping[str, Any]) -> System:
    """Return the system of a published run: 16 bit throughout, as with autocast."""
    tables = table("models")
    vpg = tables["vpgs"][run["vpg"]]
    return System(
        name=str(run["title"]),
        llm=tables["llms"][run["llm"]]["config"],
        vision=vpg.get("vision", {}),
        qformer=vpg.get("qformer"),
        image_tokens=int(vpg["image_tokens"]),
        projector=tuple(run.get("projector", ())),
        vision_flops=int(vpg.get("vision_flops", 0)),
        vision_width=int(vpg.get("vision_width", 0)),
        vpg_dtype="float16",
        llm_dtype="float16",
    )


def _vlm_config(llm: str) -> dict[str, Any]:
    vpg = table("models")["vpgs"]["blip2-vit-g"]
    return {
        "model_type": "blip-2",
        "vision_config": dict(vpg["vision"]),
        "qformer_config": dict(vpg["qformer"]),
        "text_config": dict(table("models")["llms"][llm]["config"]),
        "num_query_tokens": int(vpg["image_tokens"]),
    }
