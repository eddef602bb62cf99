"""A tiny stock BLIP-2 on real images and real tokens, trained in two stages as the paper does."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import BlipImageProcessorPil

from tests.tiny import tiny_blip2, tiny_llm, tiny_tokenizer
from vpgtrans.data.batches import Collator
from vpgtrans.data.load import Mix
from vpgtrans.data.order import PairOrder
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import ImageFile, Record, TextPair
from vpgtrans.data.steps import StepBatches
from vpgtrans.recipe import Prompt, Stage
from vpgtrans.training import StageResult, run_stage
from vpgtrans.vlm.assemble import Ported
from vpgtrans.vlm.blip2 import Blip2Family
from vpgtrans.vlm.forward import Trainee

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square")
STAGES = (
    Stage(
        name="warmup", train=("projector",), learning_rate=1e-3, lr_multiplier=5.0, schedule="constant",
        epochs=1, batch_size=4, save_steps=2, eval_steps=2,
    ),
    Stage(
        name="finetune", train=("qformer", "query_tokens", "vision_norm", "projector"), learning_rate=1e-3,
        schedule="cosine", min_learning_rate=1e-4, max_steps=4, batch_size=4, micro_batch_size=3,
        save_steps=3, eval_steps=4,
    ),
)  # fmt: skip


class Stopped(StepBatches):
    """Batches that raise at a step."""

    fatal_step = -1

    def micro_batches(self, step):
        if step == self.fatal_step:
            raise RuntimeError("stopped by the test")
        return super().micro_batches(step)


def tiny_trainee(model_type: str = "llama", dropout: float = 0.1) -> tuple[Trainee, Ported]:
    tokenizer = tiny_tokenizer("bpe")
    tokenizer.add_tokens("<image>", special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    llm = tiny_llm(model_type, vocab_size=len(tokenizer) + 8)
    model = tiny_blip2(llm, image_token_id)
    for module in model.qformer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    image_processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    ported = Ported(
        model, Blip2Family(), tokenizer, image_processor, image_token_id, model.language_projection
    )
    return Trainee(ported), ported


def draw_records(folder: Path) -> list[Record]:
    """Eight images with two texts each."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for colour in COLOURS:
        for shape in SHAPES:
            path = folder / f"{colour}-{shape}.png"
            image = Image.new("RGB", (16, 16), "black")
            draw = ImageDraw.Draw(image)
            (draw.ellipse if shape == "circle" else draw.rectangle)((3, 3, 12, 12), fill=colour)
            image.save(path)
            question = f"Question: what colour is the {shape}? Answer:"
            texts = (TextPair("", f"a {colour} {shape}"), TextPair(question, f" {colour}"))
            records.append(Record(path.stem, ImageFile(path), texts))
    return records


def train_tiny_blip2(
    run: Path,
    images: Path,
    model_type: str = "llama",
    stop: tuple[str, int] | None = None,
    watch: Callable[[Trainee, str], None] = lambda trainee, stage: None,
) -> tuple[Trainee, list[StageResult]]:
    """Train both stages, or stop with an error at (stage, step)."""
    trainee, ported = tiny_trainee(model_type)
    seq2seq = bool(ported.llm.config.is_encoder_decoder)
    encoder = PromptEncoder(
        ported.tokenizer,
        ported.image_token_id,
        4,
        "bos-image-text",
        Prompt(template="{prompt}{answer}", max_text_tokens=64),
        seq2seq,
    )
    collator = Collator(encoder, ported.image_processor)
    mix = Mix([draw_records(images)], [1.0])
    records = mix.records
    held_out = collator([(record, record.texts[0]) for record in records])

    def validation() -> float:
        loss, count = trainee.loss(held_out)
        return float(loss) / count

    results = []
    for stage in STAGES:
        order = PairOrder(mix, stage.batch_size, 1, seed=0)
        batches = Stopped(
            order,
            collator,
            epochs=stage.epochs,
            max_steps=stage.max_steps,
            micro_batch_size=stage.micro_batch_size,
        )
        if stop and stop[0] == stage.name:
            batches.fatal_step = stop[1]
        results.append(
            run_stage(
                trainee, stage, batches, run / stage.name, seed=0, fingerprint="tiny", validation=validation
            )
        )
        watch(trainee, stage.name)
    return trainee, results
