"""Pairs a second of warm-up and fine-tuning: ours, ours without sharing and cache, ``transformers.Trainer``.

``python -m benchmarks.throughput [--llm FOLDER] [--quick] [--json]``. All arms train the same stock
``Blip2ForConditionalGeneration`` (a ViT-S-sized vision encoder and Q-Former of random weights, 32 query
tokens, the LLM given or a small random one) on the same invented images and captions. ``trainer`` is what
the documentation shows: processor per sample, labels -100 on padding and image places, full logits, a prefix
and a vision pass for every text. ``plain`` is our loop with every text a sample of its own and nothing
cached. ``ours`` shares the visual prefix and, if cached, reads stored features. Each arm runs in float32 and
bfloat16 and shows its better one. Arms alternate; the numbers are medians of steps. The floor is the FLOPs
that one of our steps counts (``FlopCounterMode``) over this machine's rate of matrix products.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    LlamaConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from vpgtrans import recipe
from vpgtrans.data.batches import Collator
from vpgtrans.data.load import Mix
from vpgtrans.data.order import PairOrder
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.data.steps import StepBatches
from vpgtrans.training.loop import run_stage
from vpgtrans.vlm.assemble import Ported
from vpgtrans.vlm.family import family_of
from vpgtrans.vlm.forward import Trainee
from vpgtrans.vlm.image_token import place_image_token

WORDS = [
    "a",
    "the",
    "red",
    "green",
    "small",
    "large",
    "dog",
    "cat",
    "man",
    "woman",
    "street",
    "table",
    "sits",
    "stands",
    "near",
    "with",
    "two",
    "on",
    "of",
    "in",
]
STAGES: dict[str, tuple[str, ...]] = {
    "warmup": ("projector",),
    "finetune": ("projector", "qformer", "query_tokens", "vision_norm"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Picture:
    """An invented image."""

    number: int

    @property
    def key(self) -> str:
        """Its name."""
        return f"picture{self.number}"

    def open(self) -> Image.Image:
        """Draw it."""
        pixels = np.random.default_rng(self.number).integers(0, 255, (224, 224, 3), dtype=np.uint8)
        return Image.fromarray(pixels)


@dataclass(frozen=True)
class World:
    """The model of one LLM in one dtype, with what turns data into tensors."""

    name: str
    ported: Ported
    dtype: torch.dtype

    def encoder(self) -> PromptEncoder:
        """Return the encoder of prompts, the stock processor's order."""
        ported = self.ported
        return PromptEncoder(
            ported.tokenizer,
            ported.image_token_id,
            32,
            "image-text",
            recipe.Prompt(),
            is_encoder_decoder=False,
        )


class Clocked:
    """Batches of a stage that note when each step was asked for."""

    def __init__(self, batches: StepBatches, clock: Callable[[], float]) -> None:
        self.batches, self.clock = batches, clock
        self.num_steps = batches.num_steps
        self.times: list[float] = []

    def micro_batches(self, step: int) -> list[Any]:
        """Return a step's batches."""
        self.times.append(self.clock())
        return self.batches.micro_batches(step)

    def steps(self) -> list[float]:
        """Return the seconds of all steps but the first and the last."""
        return [end - start for start, end in itertools.pairwise(self.times[1:])]


class StepClock(TrainerCallback):
    """Notes when each of the Trainer's steps ended."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.times.append(self.clock())

    def steps(self) -> list[float]:
        """Return the seconds of all steps but the first."""
        return [end - start for start, end in itertools.pairwise(self.times)]


def records(images: int, texts: int) -> list[Record]:
    """Return images with captions of about 12 tokens."""
    draw = np.random.default_rng(0)
    made = []
    for number in range(images):
        captions = (" ".join(draw.choice(WORDS, size=int(draw.integers(8, 15)))) for _ in range(texts))
        made.append(Record(f"r{number}", Picture(number), tuple(TextPair("", one) for one in captions)))  # type: ignore[arg-type]
    return made


def world(llm: Path | None, tokenizer: Path | None, dtype: torch.dtype, small: bool) -> World:
    """Build the stock VLM around an LLM: a given one, or a small random Llama."""
    torch.manual_seed(0)
    tokens: Any = AutoTokenizer.from_pretrained(str(llm or tokenizer), local_files_only=True)
    if llm is None:
        config = LlamaConfig(
            vocab_size=len(tokens) + 8, hidden_size=256, intermediate_size=688, num_hidden_layers=6,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512,
        )  # fmt: skip
        model: Any = AutoModelForCausalLM.from_config(config).to(dtype)
    else:
        model = AutoModelForCausalLM.from_pretrained(str(llm), dtype=dtype, local_files_only=True)
    placed = place_image_token(tokens, model.get_input_embeddings().weight.shape[0])
    width, layers = (192, 4) if small else (384, 12)
    half = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
    vlm_config = Blip2Config(
        vision_config={**half, "num_hidden_layers": layers, "image_size": 224, "patch_size": 16},
        qformer_config={**half, "num_hidden_layers": layers // 2, "encoder_hidden_size": width},
        text_config=LlamaConfig(
            vocab_size=8, hidden_size=model.config.hidden_size, intermediate_size=8, num_hidden_layers=1
        ).to_dict(),
        num_query_tokens=32,
        image_token_index=placed.token_id,
    )
    vlm = Blip2ForConditionalGeneration(vlm_config).eval().requires_grad_(False)
    vlm.query_tokens.data.normal_(0, 0.5)
    vlm.language_model = model.eval().requires_grad_(False)
    vlm.config.text_config = model.config
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224})
    family = family_of({"model_type": "blip-2"})
    ported = Ported(vlm, family, placed.tokenizer, processor, placed.token_id, family.projector(vlm))
    return World("tiny" if llm is None else llm.name, ported, dtype)


def cached(here: World, stage: str, data: Sequence[Record]) -> Callable[[Record], torch.Tensor]:
    """Compute what the stage's frozen parts make of the images, once."""
    trainee = Trainee(here.ported)
    collator = Collator(here.encoder(), here.ported.image_processor)
    store: dict[str, torch.Tensor] = {}
    for record in data:
        with torch.no_grad():
            batch = collator([(record, record.texts[0])])
            features = trainee.vpg_output(batch) if stage == "warmup" else trainee.vision_features(batch)
        store[record.image.key] = features[0]
    return lambda record: store[record.image.key]


def ours(
    here: World, stage: str, data: Sequence[Record], options: argparse.Namespace, *, share: bool, cache: bool
) -> tuple[list[float], StepBatches]:
    """Train some steps in our loop; return the seconds of each, and the batches."""
    features = cached(here, stage, data) if cache else None
    cut: Any = None if features is None else ("vpg" if stage == "warmup" else "vision")
    collator = Collator(here.encoder(), here.ported.image_processor, features, cut)
    order = PairOrder(Mix([list(data)], [1.0]), options.batch_size, None if share else 1)
    steps = StepBatches(order, collator, max_steps=options.steps + 2)
    timed = Clocked(steps, options.clock)
    trainee = Trainee(here.ported, "auto" if share else "off")
    settings = recipe.Stage(
        name=stage, train=STAGES[stage], learning_rate=1e-4, max_steps=steps.num_steps,
        batch_size=options.batch_size, save_steps=10**6, eval_steps=10**6,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run_stage(
            trainee, settings, timed, Path(folder) / stage, seed=0, fingerprint="benchmark",
            start_checksum="benchmark-not-checked" if options.skip_checksum else None,
        )  # fmt: skip
    return timed.steps(), steps


def trainer(here: World, stage: str, data: Sequence[Record], options: argparse.Namespace) -> list[float]:
    """Train some steps with ``transformers.Trainer``; return the seconds of each."""
    model, ported = here.ported.model, here.ported
    model.requires_grad_(False)
    for part in STAGES[stage]:
        for name, parameter in model.named_parameters():
            if name.startswith(ported.family.parts[part]):
                parameter.requires_grad_(True)
    processor = Blip2Processor(ported.image_processor, ported.tokenizer, num_query_tokens=32)
    pairs = [(record, text) for record in data for text in record.texts]

    def collate(chosen: list[Any]) -> dict[str, torch.Tensor]:
        images = [record.image.open() for record, _ in chosen]
        inputs = processor(
            images=images, text=[text.answer for _, text in chosen], padding=True, return_tensors="pt"
        )
        labels = inputs["input_ids"].clone()
        labels[(inputs["attention_mask"] == 0) | (labels == ported.image_token_id)] = -100
        return {**inputs, "labels": labels}

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=options.batch_size, max_steps=options.steps + 1,
            use_cpu=True, bf16=here.dtype == torch.bfloat16, report_to=[], save_strategy="no",
            remove_unused_columns=False, logging_strategy="no", disable_tqdm=True, learning_rate=1e-4,
        )  # fmt: skip
        clock = StepClock(options.clock)
        dataset: Any = pairs * 50
        Trainer(
            model=model, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[clock]
        ).train()
    model.eval().requires_grad_(False)
    return clock.steps()


def floor_seconds(here: World, stage: str, steps: StepBatches, clock: Callable[[], float]) -> float:
    """Return the seconds that the counted FLOPs of one step take at this machine's GEMM rate."""
    trainee = Trainee(here.ported)
    trainee.module.requires_grad_(False)
    for part in STAGES[stage]:
        for name in trainee.parts[part]:
            trainee.module.get_parameter(name).requires_grad_(True)
    batch = steps.micro_batches(0)[0]
    trainee.loss(batch)  # the probe is not part of a step
    with FlopCounterMode(display=False) as counter:
        trainee.loss(batch)[0].backward()
    trainee.module.zero_grad()
    trainee.module.requires_grad_(False)
    return counter.get_total_flops() / gemm_rate(here, clock)


def gemm_rate(here: World, clock: Callable[[], float]) -> float:
    """Return FLOP/s of the LLM's own widest layer over a thousand tokens."""
    width = here.ported.llm.config.hidden_size
    left = torch.randn(1024, width).to(here.dtype)
    weight = torch.randn(here.ported.llm.config.intermediate_size, width).to(here.dtype)
    seconds = []
    for _ in range(12):
        start = clock()
        for _ in range(5):
            left @ weight.T
        seconds.append((clock() - start) / 5)
    return 2 * left.shape[0] * weight.numel() / statistics.median(seconds[2:])


def measure(
    worlds: dict[str, World], stage: str, texts: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Alternate all arms and return one row for ours without and one with a cache."""
    images = max(2 * options.batch_size // texts, 4)
    data = records(images, texts)
    seconds: dict[tuple[str, str], list[float]] = {}
    floors: dict[str, float] = {}
    for _ in range(options.repeats):
        for dtype, here in worlds.items():
            seconds.setdefault(("trainer", dtype), []).extend(trainer(here, stage, data, options))
            plain, _ = ours(here, stage, data, options, share=False, cache=False)
            seconds.setdefault(("plain", dtype), []).extend(plain)
            for cache in (False, True):
                shared, steps = ours(here, stage, data, options, share=True, cache=cache)
                seconds.setdefault((f"ours{cache}", dtype), []).extend(shared)
                floors[f"{cache}{dtype}"] = floor_seconds(here, stage, steps, options.clock)
    best = {
        arm: min((statistics.median(seconds[arm, dtype]), dtype) for dtype in worlds)
        for arm in ("trainer", "plain", "oursFalse", "oursTrue")
    }
    return [
        {
            "stage": stage,
            "llm": next(iter(worlds.values())).name,
            "texts_per_image": texts,
            "cached": cache,
            "pairs_per_s": round(options.batch_size / best[f"ours{cache}"][0], 2),
            "ratio_vs_trainer": round(best["trainer"][0] / best[f"ours{cache}"][0], 2),
            "ratio_vs_plain": round(best["plain"][0] / best[f"ours{cache}"][0], 2),
            "share_of_floor": round(floors[f"{cache}{best[f'ours{cache}'][1]}"] / best[f"ours{cache}"][0], 3),
            "dtype": best[f"ours{cache}"][1],
            "dtype_trainer": best["trainer"][1],
            "seconds": {
                f"{arm} {dtype}": round(statistics.median(v), 3) for (arm, dtype), v in seconds.items()
            },
        }
        for cache in (False, True)
    ]


def options_of(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--llm", type=Path, help="folder of a real LLM (SmolLM2-135M)")
    parser.add_argument("--tokenizer", type=Path, help="folder with a tokenizer for the small random LLM")
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 5, 10])
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each arm and repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cpu-clock", action="store_true", help="CPU seconds: for a machine that is busy")
    parser.add_argument("--small-vision", action="store_true", help="a vision encoder of a twelfth the size")
    parser.add_argument("--quick", action="store_true", help="1 and 5 texts, one step, one repeat")
    parser.add_argument("--json", action="store_true", help="one JSON object a line and nothing else")
    options = parser.parse_args(arguments)
    if options.quick:
        options.texts = [one for one in options.texts if one in (1, 5)] or options.texts[:1]
        options.batch_size, options.steps, options.repeats = 20, 1, 1
    if options.llm is None and options.tokenizer is None:
        parser.error("give --llm FOLDER, or --tokenizer FOLDER for the small random LLM")
    options.clock = time.process_time if options.cpu_clock else time.perf_counter
    options.skip_checksum = False
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = options_of(arguments)
    folders = [folder for folder in (options.tokenizer and None, options.llm) if folder or options.tokenizer]
    for llm in dict.fromkeys(folders):
        worlds = {
            name: world(llm, options.tokenizer or options.llm, DTYPES[name], options.small_vision)
            for name in options.dtypes
        }
        for texts, stage in itertools.product(options.texts, options.stages):
            for row in measure(worlds, stage, texts, options):
                print(json.dumps(row) if options.json else _line(row), flush=True)


def _line(row: dict[str, Any]) -> str:
    return (
        f"{row['llm']:>14} {row['stage']:>8} {row['texts_per_image']:>3} texts, "
        f"{'cached' if row['cached'] else 'no cache':>8}: "
        f"{row['pairs_per_s']:8.2f} pairs/s ({row['dtype']}), "
        f"{row['ratio_vs_trainer']:5.2f} x Trainer, {row['ratio_vs_plain']:5.2f} x plain, "
        f"{100 * row['share_of_floor']:.0f} % of the floor"
    )


if __name__ == "__main__":
    main()
