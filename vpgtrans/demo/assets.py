"""The two models that come with the package, and what their manifest says of them."""

import json
from pathlib import Path
from typing import Any

from vpgtrans.errors import CheckpointError
from vpgtrans.weights.disk import sha256_file

ASSETS = Path(__file__).resolve().parent / "assets"
SOURCE_VLM = ASSETS / "source-vlm"
"""A stock BLIP-2 folder: ViT, Q-Former, projector and a Llama-type LLM."""
TARGET_LLM = ASSETS / "target-llm"
"""A stock GPT-NeoX-type LLM folder with another tokenizer and another width."""
MANIFEST = ASSETS / "manifest.json"


def read_manifest() -> dict[str, Any]:
    """Return the manifest: files with sizes and checksums, held-out scores, how they were made.

    Raises:
        CheckpointError: if the assets are not there.
    """
    if not MANIFEST.is_file():
        raise CheckpointError(
            f"the demo's models are missing ({MANIFEST}): install the package again, "
            "or rebuild them with scripts/build_demo_assets.py"
        )
    manifest: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return manifest


def check_assets() -> dict[str, Any]:
    """Compare every asset with its checksum; return the manifest.

    Raises:
        CheckpointError: names the files that are missing or differ.
    """
    manifest = read_manifest()
    wrong = [
        name
        for name, facts in manifest["files"].items()
        if not (ASSETS / name).is_file() or sha256_file(ASSETS / name) != facts["sha256"]
    ]
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} of the demo's {len(manifest['files'])} model files are missing or damaged "
            f"({', '.join(wrong[:5])}): install the package again"
        )
    return manifest
