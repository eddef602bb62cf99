"""``vpgtrans env``: what a bug report needs."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from vpgtrans import __version__
from vpgtrans.cli.options import JsonOption
from vpgtrans.console import Console

PACKAGES = (
    "torch", "transformers", "accelerate", "safetensors", "huggingface-hub", "tokenizers", "datasets",
    "pydantic", "numpy", "pillow", "gguf", "typer",
)  # fmt: skip


def env(as_json: JsonOption = False) -> None:
    """Print versions and hardware, for bug reports and run records."""
    facts = environment()
    console = Console(json_only=as_json)
    if as_json:
        console.json(facts)
    else:
        console.facts("Environment", facts)


def environment() -> dict[str, str]:
    """Return versions and hardware."""
    facts = {"vpgtrans": __version__, "python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["cpus"] = str(os.cpu_count())
    facts["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    facts["gpu"] = _gpus()
    return facts


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return ", ".join(f"{gpu.name} ({gpu.total_memory / 2**30:.0f} GiB)" for gpu in names)
