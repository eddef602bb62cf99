"""Tiny real models and tokenizers, built in memory: no download, no stubs.

Weights are random but seeded and never zero or identity, so that an algebra error shows.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TokenizerKind = Literal["bpe", "unigram", "wordpiece"]

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
SHAPES = ("circle", "square", "triangle", "star")
CORPUS = [
    f"a {c} {s} left of a {d} {t}" for c in COLOURS for s in SHAPES for d in COLOURS for t in SHAPES
] + [f"Question: what colour is the {s}? Answer: {c}\n" for c in COLOURS for s in SHAPES]


def tiny_tokenizer(
    kind: TokenizerKind = "bpe", vocab_size: int = 300, bos: bool = True
) -> PreTrainedTokenizerFast:
    """Train a tokenizer of one of the three families on a small corpus.

    ``bpe`` is byte-level (``Ġdog``), ``unigram`` is SentencePiece-like (``▁dog``), ``wordpiece`` is
    BERT-like (``##og``). Specials: ``<s>`` (BOS, put in front if ``bos``), ``</s>``, ``<pad>``, ``<unk>``.
    """
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=None))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
        tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=vocab_size, special_tokens=[*specials, "\n"], unk_token="<unk>", show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=specials, show_progress=False
        )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def tiny_llm(
    model_type: str = "llama", vocab_size: int = 310, hidden: int = 32, seed: int = 0, **extra: Any
) -> PreTrainedModel:
    """Build a random two-layer LLM of a Hugging Face ``model_type`` in eval mode, float32.

    ``extra`` goes into the config. Every weight is made clearly non-zero (norms and biases too).
    """
    torch.manual_seed(seed)
    config = tiny_llm_config(model_type, vocab_size, hidden, **extra)
    cls = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = cls.from_config(config).eval()
    _shake(model, seed)
    return model


def tiny_llm_config(model_type: str, vocab_size: int = 310, hidden: int = 32, **extra: Any) -> Any:
    """Return a two-layer config of a ``model_type``, with the spellings of its family."""
    cls = CONFIG_MAPPING[model_type]
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    family: dict[str, dict[str, Any]] = {
        "opt": {"ffn_dim": 2 * hidden, "word_embed_proj_dim": hidden},
        "t5": {
            "d_model": hidden,
            "d_kv": 8,
            "d_ff": 2 * hidden,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        "mt5": {
            "d_model": hidden,
            "d_kv": 8,
            "d_ff": 2 * hidden,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        "gpt2": {"n_embd": hidden, "n_layer": 2, "n_head": 4, "n_positions": 256},
        "gemma3_text": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
        "gemma2": {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8},
        "gemma": {"head_dim": 8},
        "qwen3": {"head_dim": 8},
    }
    return cls(**{**common, **family.get(model_type, {}), **extra})


def tiny_blip2(
    llm: PreTrainedModel,
    image_token_id: int,
    num_query_tokens: int = 4,
    qformer_hidden: int = 24,
    seed: int = 1,
) -> Blip2ForConditionalGeneration:
    """Wrap an LLM into a tiny stock BLIP-2: a 2-layer ViT on 16 px images, a 2-layer Q-Former."""
    torch.manual_seed(seed)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=20,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            hidden_size=qformer_hidden,
            intermediate_size=2 * qformer_hidden,
            num_hidden_layers=2,
            num_attention_heads=2,
            encoder_hidden_size=20,
            cross_attention_frequency=1,
        ).to_dict(),
        text_config=llm.config.to_dict(),
        num_query_tokens=num_query_tokens,
        image_token_index=image_token_id,
    )
    model = Blip2ForConditionalGeneration(config).eval()
    _shake(model, seed)
    model.query_tokens.data.normal_(0, 0.5)
    model.language_model = llm
    model.config.text_config = llm.config
    return model


def save_tiny_llm(
    folder: Path, model_type: str = "llama", kind: TokenizerKind = "bpe", **kwargs: Any
) -> Path:
    """Save a tiny LLM with its tokenizer as a model folder."""
    tiny_llm(model_type, **kwargs).save_pretrained(folder)
    tiny_tokenizer(kind).save_pretrained(folder)
    return folder


def save_tiny_blip2(
    folder: Path, model_type: str = "llama", kind: TokenizerKind = "bpe", **kwargs: Any
) -> Path:
    """Save a tiny BLIP-2 with its processor as a stock model folder."""
    tokenizer = tiny_tokenizer(kind)
    image_processor = BlipImageProcessorPil(size={"height": 16, "width": 16})
    processor = Blip2Processor(image_processor, tokenizer, num_query_tokens=4)
    llm = tiny_llm(model_type, vocab_size=len(tokenizer) + 8, **kwargs)
    model = tiny_blip2(llm, tokenizer.convert_tokens_to_ids("<image>"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@torch.no_grad()
def _shake(model: torch.nn.Module, seed: int) -> None:
    """Add seeded noise to every parameter: norms away from 1, biases away from 0."""
    generator = torch.Generator().manual_seed(seed + 100)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
