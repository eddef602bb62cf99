"""Train the demo's two LLMs from scratch: two families, widths, tokenizers and text samples.

The state after every piece of work is on disk, so that the build may stop and go on.
"""

import math
import random
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from demo_assets.corpus import Pick, description_with_questions, documents
from demo_assets.loop import train

SPECIALS = ["<pad>", "<eos>"]
POOL = 128
"""Documents drawn at once and sorted by length, so that little is padded."""
BATCH = 32
"""Documents a step."""
READING_STEPS = 1200
"""The first steps, in which an LLM learns to look things up in a text; then come all kinds of texts."""
READING_WEIGHT, PROSE_WEIGHT = 0.05, 0.3
"""Weight of a token outside an answer, in the first steps and after them."""


@dataclass(frozen=True)
class LLMSpec:
    """One LLM of the demo."""

    name: str
    seed: int
    vocab_size: int
    steps: int
    learning_rate: float
    tokenizer: str
    """``bpe`` (byte-level, ``Ġdog``) or ``metaspace`` (SentencePiece-like, ``▁dog``)."""
    shape: dict[str, int] = field(default_factory=dict)

    @property
    def initial_scale(self) -> float:
        """Standard deviation of untrained weights: 1 / sqrt(width); the usual 0.02 is far too small here."""
        return 1.0 / math.sqrt(self.shape["hidden_size"])


SOURCE = LLMSpec(
    "source-llm", seed=11, vocab_size=1500, steps=2200, learning_rate=3e-3, tokenizer="bpe",
    shape={"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
)  # fmt: skip
TARGET = LLMSpec(
    "target-llm", seed=23, vocab_size=1300, steps=2200, learning_rate=3e-3, tokenizer="metaspace",
    shape={"hidden_size": 160, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 5},
)  # fmt: skip


def make_tokenizer(spec: LLMSpec, count: int = 30_000) -> PreTrainedTokenizerFast:
    """Train a tokenizer on so many of the LLM's own texts; neither tokenizer puts a BOS in front."""
    texts = islice(documents(f"{spec.seed}/tokenizer"), count)
    if spec.tokenizer == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=spec.vocab_size, special_tokens=SPECIALS, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
    else:
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
        # a line end and a punctuation mark are tokens of their own, as in a SentencePiece model
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split("\n", "isolated"),
                pre_tokenizers.Punctuation("isolated"),
                pre_tokenizers.Metaspace(prepend_scheme="first"),
            ]
        )
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
        trainer = trainers.BpeTrainer(
            vocab_size=spec.vocab_size, special_tokens=[*SPECIALS, "<unk>"], show_progress=False,
            initial_alphabet=["\n"],
        )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>",
        unk_token="<unk>" if spec.tokenizer == "metaspace" else None, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def make_llm(spec: LLMSpec, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM | GPTNeoXForCausalLM:
    """Build the untrained LLM; its table has spare rows beyond the tokenizer, as real ones have."""
    torch.manual_seed(spec.seed)
    rows = 32 * math.ceil((len(tokenizer) + 8) / 32)
    common = {
        "vocab_size": rows, "max_position_embeddings": 512, "tie_word_embeddings": True, "bos_token_id": 1,
        "eos_token_id": 1, "pad_token_id": 0, "initializer_range": spec.initial_scale, **spec.shape,
    }  # fmt: skip
    if spec.tokenizer == "bpe":
        return LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=2))
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(**common, rotary_pct=0.5, hidden_dropout=0.0, attention_dropout=0.0)
    )


def train_llm(spec: LLMSpec, folder: Path, seconds: float) -> bool:
    """Train for at most some seconds, going on from what is in ``folder``; return whether it is done."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        make_tokenizer(spec).save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = make_llm(spec, tokenizer)
    model.set_attn_implementation("eager")  # its backward is twice as fast as sdpa's at these head widths
    marks = answer_marks(tokenizer)
    pools: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def loss_of(step: int) -> tuple[torch.Tensor, float]:
        pool, place = divmod(step, POOL // BATCH)
        if pool not in pools:
            pools.clear()
            pools[pool] = token_batches(tokenizer, f"{spec.seed}/train/{pool}", reading=step < READING_STEPS)
        ids, labels = pools[pool][place]
        around = READING_WEIGHT if step < READING_STEPS else PROSE_WEIGHT
        loss = text_loss(model, ids, labels, answer_weights(ids, labels, marks, around))
        return loss, loss.item()

    done = train(spec.name, model, loss_of, spec.steps, spec.learning_rate, folder / "state.pt", seconds)
    if done:
        model.eval().save_pretrained(folder)
    return done


def token_batches(
    tokenizer: PreTrainedTokenizerFast, seed: str, *, reading: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return ids and labels of a seed's documents; they start at position 0 and end with EOS."""
    texts = [
        text.rstrip(" ") + tokenizer.eos_token for text in islice(documents(seed, reading=reading), POOL)
    ]
    rows = sorted(tokenizer(texts, truncation=True, max_length=128)["input_ids"], key=len)
    batches = []
    for start in range(0, POOL, BATCH):
        batch = tokenizer.pad({"input_ids": rows[start : start + BATCH]}, return_tensors="pt")
        ids = batch["input_ids"]
        batches.append((ids, ids.masked_fill(batch["attention_mask"] == 0, -100)))
    random.Random(seed).shuffle(batches)
    return batches


def answer_marks(tokenizer: PreTrainedTokenizerFast) -> tuple[int, int]:
    """Return the token in front of an answer and the token that ends it."""
    opened = tokenizer("question: a? answer:")["input_ids"][-2]
    return opened, tokenizer("red\n")["input_ids"][-1]


def answer_weights(
    ids: torch.Tensor, labels: torch.Tensor, marks: tuple[int, int], around: float
) -> torch.Tensor:
    """Weigh the tokens: 1 in answers, which the text before tells, and less where words are drawn by lot.

    Args:
        ids: (B, T).
        labels: (B, T); -100 gets no weight.
        marks: From :func:`answer_marks`.
        around: Weight of a token outside an answer.
    """
    weights = torch.full(ids.shape, around)
    answering = torch.zeros(len(ids), dtype=torch.bool)
    for place in range(2, ids.shape[1]):
        answering |= ids[:, place - 2] == marks[0]
        weights[answering, place] = 1.0
        answering &= ids[:, place] != marks[1]
    return weights.masked_fill(labels == -100, 0.0)


def text_loss(
    model: Any, ids: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Weighted mean of the tokens' losses; right padding under a causal mask: no real token sees it."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits
    losses_BT = torch.nn.functional.cross_entropy(
        logits[:, :-1].transpose(1, 2).float(), labels[:, 1:], reduction="none"
    )
    weights_BT = (labels != -100).float()[:, 1:] if weights is None else weights[:, 1:]
    return (losses_BT * weights_BT).sum() / weights_BT.sum()


@torch.no_grad()
def score_llm(folder: Path, spec: LLMSpec) -> dict[str, float]:
    """Held-out loss in nats a token, and the share of described questions answered exactly."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = (
        (LlamaForCausalLM if spec.tokenizer == "bpe" else GPTNeoXForCausalLM).from_pretrained(folder).float()
    )
    losses = [text_loss(model, *batch).item() for batch in token_batches(tokenizer, "held-out")]
    rng = Pick("held-out questions")
    right, kinds = 0, 0
    newline = tokenizer("\n")["input_ids"][-1]
    for _ in range(200):
        text = description_with_questions(rng)
        head, answer = text.rstrip("\n").rsplit(" answer: ", 1)
        ids = tokenizer(head + " answer:", return_tensors="pt")["input_ids"]
        out = model.generate(ids, max_new_tokens=20, do_sample=False, eos_token_id=newline, pad_token_id=0)
        right += tokenizer.decode(out[0, ids.shape[1] :]).strip() == answer
        kinds += 1
    return {"held_out_loss": sum(losses) / len(losses), "held_out_answers_exact": right / kinds}
