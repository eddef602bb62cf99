"""Rebuild the models of ``vpgtrans demo`` from nothing: texts and pictures are generated, seeds are fixed.

    python scripts/build_demo_assets.py --work runs/demo-build

Steps: ``source-llm`` and ``target-llm`` (two LLMs learn to read), ``seeing`` (the VPG learns to name what it
sees), ``speaking`` (VPG and projector learn to speak through the frozen source LLM), ``package`` (float16
folders, checksums and held-out scores into ``vpgtrans/demo/assets``). With ``--seconds`` the call stops
after so long and exits with 3; the same call goes on. About 25 minutes on one core with bfloat16 matrix
units. Another machine gives other last digits, so that checksums hold for one build.
"""

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from demo_assets import llms, source_vlm
from demo_assets.loop import spent_seconds

from vpgtrans.demo.assets import ASSETS
from vpgtrans.demo.dataset import write_dataset
from vpgtrans.demo.report import exact_by_kind
from vpgtrans.recipe import DataSource, Evaluation
from vpgtrans.transfer.standalone import evaluate_model
from vpgtrans.weights.disk import atomic_write_json, sha256_file

STEPS = ("source-llm", "target-llm", "seeing", "speaking", "package")
SCORED_PICTURES = 200
"""Held-out pictures for the source VLM's score in the manifest."""


def main() -> int:
    """Run the steps that are asked for; return 0 when all are done, 3 when time ran out."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="unfinished models")
    parser.add_argument("--out", type=Path, default=ASSETS)
    parser.add_argument("--step", choices=STEPS, action="append", help="only this step; repeatable")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop training after so long")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    stop = time.monotonic() + asked.seconds
    for step in asked.step or STEPS:
        if not run_step(step, asked.work, asked.out, stop - time.monotonic()):
            print(f"{step}: not finished; the same call goes on")
            return 3
        print(f"{step}: done", flush=True)
    return 0


def run_step(step: str, work: Path, out: Path, seconds: float) -> bool:
    """Run one step for at most some seconds; return whether it is finished."""
    source_llm = work / "source-llm"
    if step == "source-llm":
        return llms.train_llm(llms.SOURCE, source_llm, seconds)
    if step == "target-llm":
        return llms.train_llm(llms.TARGET, work / "target-llm", seconds)
    if step == "seeing":
        return source_vlm.train_seeing(work, seconds)
    if step == "speaking":
        return source_vlm.train_speaking(source_llm, work, seconds)
    package(work, out)
    return True


def package(work: Path, out: Path) -> None:
    """Copy the models in float16, score what was copied, and write the manifest."""
    for name in ("source-vlm", "target-llm"):
        shutil.rmtree(out / name, ignore_errors=True)
    shutil.copytree(work / "source-vlm", out / "source-vlm")
    _forget_paths(out / "source-vlm" / "config.json")
    target = transformers.AutoModelForCausalLM.from_pretrained(work / "target-llm", dtype=torch.float16)
    target.save_pretrained(out / "target-llm")
    transformers.AutoTokenizer.from_pretrained(work / "target-llm").save_pretrained(out / "target-llm")
    models = {
        "source-llm": _llm_facts(llms.SOURCE, work / "source-llm", "a Llama-type LLM", work),
        "target-llm": _llm_facts(llms.TARGET, out / "target-llm", "a GPT-NeoX-type LLM", work),
        "source-vlm": _vlm_facts(out / "source-vlm", work),
    }
    files = {
        str(path.relative_to(out)): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.parent != out
    }
    made = {
        "command": "python scripts/build_demo_assets.py --work runs/demo-build",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
    }
    atomic_write_json(out / "manifest.json", {"made": made, "models": models, "files": files})
    print(json.dumps(models, indent=2), sum(facts["bytes"] for facts in files.values()) / 1e6, "MB")


def _forget_paths(config: Path) -> None:
    """Drop the folder that each part was built in: it is a path of the building machine."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(item) for key, item in value.items() if key != "_name_or_path"}
        return value

    atomic_write_json(config, kept(json.loads(config.read_text(encoding="utf-8"))))


def _llm_facts(spec: llms.LLMSpec, folder: Path, family: str, work: Path) -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    kind = "byte-level BPE" if spec.tokenizer == "bpe" else "SentencePiece-like BPE"
    return {
        "words": f"{family} of width {spec.shape['hidden_size']} ({kind}, {spec.vocab_size:,} tokens)",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seed": spec.seed,
        "steps": spec.steps,
        "learning_rate": spec.learning_rate,
        "train_seconds": round(spent_seconds(work / spec.name / "state.pt")),
        "scores": llms.score_llm(folder, spec),
    }


def _vlm_facts(folder: Path, work: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        data = write_dataset(Path(scratch), {"held-out": SCORED_PICTURES}, seed=source_vlm.SEED)
        test = DataSource(path=str(data["held-out"]), format="vqa", template=source_vlm.TEMPLATE)
        report = evaluate_model(str(folder), test, Evaluation(max_texts=None), Path(scratch) / "scores")
        questions, captions = exact_by_kind(Path(scratch) / "scores")
    model = transformers.Blip2ForConditionalGeneration.from_pretrained(folder)
    own = [p.numel() for name, p in model.named_parameters() if not name.startswith("language_model.")]
    return {
        "words": "a BLIP-2 on that Llama-type LLM: ViT, Q-Former with 8 queries, linear projector",
        "parameters": sum(own),
        "seed": source_vlm.SEED,
        "steps": [source_vlm.SEEING_STEPS, source_vlm.SPEAKING_STEPS],
        "learning_rate": [source_vlm.SEEING_RATE, source_vlm.SPEAKING_RATE],
        "train_seconds": round(sum(spent_seconds(work / name) for name in ("seeing.pt", "speaking.pt"))),
        "scores": {
            "held_out_loss": report["loss"],
            "questions_exact": questions,
            "captions_exact": captions,
            "held_out_pictures": SCORED_PICTURES,
        },
    }


if __name__ == "__main__":
    sys.exit(main())
