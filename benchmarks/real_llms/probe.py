"""How large must the pictures be? Linear probes and retrieval on the ViT's frozen features, by image size.

Features are the class token beside the mean of the patches after the last kept layer, standardised.
On easy-VQA a ridge classifier names shape and colour (two thirds of the images train it); on emoji the
nearest Twemoji drawing to a Noto drawing is sought by cosine.

Run: ``python -m benchmarks.real_llms.probe --root ROOT --sizes 112 224`` after ``prepare.py``.

Letters in names: N images, F features, C classes, X pixels along one side, H hidden width.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import Blip2VisionModel

from benchmarks.real_llms import vision
from benchmarks.real_llms.data import question_type
from benchmarks.real_llms.lines import Line, read_lines
from benchmarks.real_llms.packages import DEFAULT_ROOT, Assets
from benchmarks.real_llms.source import VpgShape
from vpgtrans.console import Console

RIDGE = 30.0
_BATCH = 20


def shapes_and_colours(lines: Sequence[Line], limit: int) -> dict[str, tuple[str, str]]:
    """Return the first images that were asked for both: image to (shape, colour)."""
    answers: dict[str, dict[str, str]] = {}
    for line in lines:
        answers.setdefault(line.image, {})[question_type(line.question)] = line.answer
    whole = {
        image: (a["shape"], a["color"]) for image, a in answers.items() if {"shape", "color"} <= a.keys()
    }
    return dict(list(whole.items())[:limit])


def read_pixels(paths: Sequence[Path], size: int) -> Tensor:
    """Read images as the stock processor does: bicubic, ImageNet statistics.

    Returns:
        (N, 3, X, X)
    """
    mean, std = (torch.tensor(v)[:, None, None] for v in (vision.IMAGE_MEAN, vision.IMAGE_STD))
    images = [Image.open(p).convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for p in paths]
    return torch.stack(
        [(torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 - mean) / std for image in images]
    )


@torch.no_grad()
def features(model: Blip2VisionModel, paths: Sequence[Path], size: int) -> Tensor:
    """Return (N, 2 * H): the class token and the mean patch, before the norm after the encoder."""
    found = []
    for start in range(0, len(paths), _BATCH):
        hidden = model.embeddings(read_pixels(paths[start : start + _BATCH], size))
        hidden = model.encoder(inputs_embeds=hidden).last_hidden_state
        found.append(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], dim=1))
    return torch.cat(found)


def ridge_accuracy(x_NF: Tensor, labels: Sequence[str]) -> float:
    """Fit a ridge classifier on two thirds and score it on the rest."""
    classes = sorted(set(labels))
    y_N = torch.tensor([classes.index(label) for label in labels])
    cut = 2 * len(labels) // 3
    x_NF = (x_NF - x_NF[:cut].mean(0)) / (x_NF[:cut].std(0) + 1e-6)
    x_NF = torch.cat([x_NF, torch.ones(len(x_NF), 1)], dim=1).double()
    train_NF = x_NF[:cut]
    targets_NC = functional.one_hot(y_N[:cut], len(classes)).double()
    gram_FF = train_NF.T @ train_NF + RIDGE * torch.eye(x_NF.shape[1], dtype=torch.float64)
    weight_FC = torch.linalg.solve(gram_FF, train_NF.T @ targets_NC)
    return float(((x_NF[cut:] @ weight_FC).argmax(1) == y_N[cut:]).double().mean())


def retrieval(query_NF: Tensor, gallery_NF: Tensor) -> float:
    """Return the share of rows whose nearest gallery row, by cosine, stands at the same place."""
    both = torch.cat([query_NF, gallery_NF])
    mean, std = both.mean(0), both.std(0) + 1e-6
    query_NF = functional.normalize((query_NF - mean) / std, dim=1)
    gallery_NF = functional.normalize((gallery_NF - mean) / std, dim=1)
    nearest_N = (query_NF @ gallery_NF.T).argmax(1)
    return float((nearest_N == torch.arange(len(query_NF))).double().mean())


def probe(assets: Assets, size: int, num_images: int, num_concepts: int) -> dict[str, float]:
    """Measure one image size.

    Args:
        assets: Where data and ViT lie.
        size: Pixels along one side.
        num_images: Of easy-VQA's training images; 0: none.
        num_concepts: Of the emoji that no training image shows; 0: none.

    Returns:
        Accuracies, and seconds of one image.
    """
    model = vision.blip2_vision_model(vision.read_onnx(assets.vit), VpgShape().vision_layers, size)
    found, started, count = {}, time.perf_counter(), num_images + 2 * num_concepts
    if num_images:
        folder = assets.data("easy-vqa")
        labels = shapes_and_colours(read_lines(folder / "train.jsonl"), num_images)
        x_NF = features(model, [folder / image for image in labels], size)
        found["shape"] = ridge_accuracy(x_NF, [shape for shape, _ in labels.values()])
        found["colour"] = ridge_accuracy(x_NF, [colour for _, colour in labels.values()])
    if num_concepts:
        folder = assets.data("emoji")
        lines = read_lines(folder / "test-new-concept.jsonl")
        codes = sorted({Path(line.image).name for line in lines})[:num_concepts]
        noto, twemoji = (
            features(model, [folder / "images" / style / code for code in codes], size)
            for style in ("noto", "twemoji")
        )
        found["Noto to Twemoji"] = retrieval(noto, twemoji)
    return {**found, "seconds an image": (time.perf_counter() - started) / max(1, count)}


def main(words: Sequence[str] | None = None) -> None:
    """Print one row an image size."""
    parser = argparse.ArgumentParser(description="Probe the ViT's features at several image sizes.")
    parser.add_argument("--root", type=Path, default=DEFAULT_ROOT, help=f"default: {DEFAULT_ROOT}")
    parser.add_argument("--sizes", type=int, nargs="+", default=[84, 112, 140, 168, 224])
    parser.add_argument("--images", type=int, default=900, help="of easy-VQA")
    parser.add_argument("--concepts", type=int, default=186, help="of the emoji, two drawings each")
    asked = parser.parse_args(words)
    console = Console()
    for size in asked.sizes:
        found = probe(Assets(asked.root), size, asked.images, asked.concepts)
        patches = (size // vision.VitShape().patch_size) ** 2
        cells = "  ".join(f"{name} {value:.3f}" for name, value in found.items())
        console.say(f"{size} px, {patches} patches: {cells}")


if __name__ == "__main__":
    main()
