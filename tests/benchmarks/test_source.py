"""The untrained source: a stock folder with the ViT's weights, queries that differ, and a placeholder LLM."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Blip2ForConditionalGeneration

from benchmarks.real_llms import source, vision
from benchmarks.real_llms.source import VpgShape, build_untrained, untrained_vlm
from benchmarks.real_llms.vision import VitShape

WIDTH, HEADS, GRID = 12, 6, 3
PATCH = VitShape().patch_size
SHAPE = VpgShape(
    image_size=2 * PATCH,
    vision_layers=1,
    num_query_tokens=3,
    qformer_width=16,
    qformer_layers=2,
    qformer_heads=2,
)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A DINOv2 of two layers under file names, far from a fresh one."""
    generator = torch.Generator().manual_seed(5)
    layer = {
        **{f"attention.attention.{n}.weight": (WIDTH, WIDTH) for n in ("query", "key", "value")},
        **{f"attention.attention.{n}.bias": (WIDTH,) for n in ("query", "key", "value")},
        "attention.output.dense.weight": (WIDTH, WIDTH),
        "attention.output.dense.bias": (WIDTH,),
        "norm1.weight": (WIDTH,),
        "norm1.bias": (WIDTH,),
        "norm2.weight": (WIDTH,),
        "norm2.bias": (WIDTH,),
        "layer_scale1.lambda1": (WIDTH,),
        "layer_scale2.lambda1": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH),
        "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        "mlp.fc2.bias": (WIDTH,),
    }
    shapes = {
        "embeddings.cls_token": (1, 1, WIDTH),
        "embeddings.position_embeddings": (1, 1 + GRID * GRID, WIDTH),
        "embeddings.patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": (WIDTH,),
        **{f"encoder.layer.{number}.{name}": shape for number in range(2) for name, shape in layer.items()},
    }
    return {name: torch.randn(*shape, generator=generator) * 0.3 for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def built(state, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("built") / "untrained"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vision, "read_onnx", lambda path: state)
        return folder, build_untrained(Path("vit.onnx"), folder, SHAPE)


def test_the_folder_is_stock_and_holds_the_vit(built, state):
    folder, _ = built
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, Blip2ForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    wanted = vision.to_blip2_state(state, num_layers=1, grid=2)
    found = model.vision_model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert model.config.num_query_tokens == 3
    assert model.config.qformer_config.num_hidden_layers == 2
    assert model.config.qformer_config.encoder_hidden_size == WIDTH
    assert sum(p.numel() for p in model.language_model.parameters()) < 10_000


def test_nothing_else_is_left_in_the_folder(built):
    names = {path.name for path in built[0].iterdir()}
    assert {"config.json", "model.safetensors", "processor_config.json", "facts.json"} <= names
    assert not any(path.is_dir() for path in built[0].iterdir())


def test_facts_are_measured_and_written(built):
    folder, facts = built
    assert json.loads((folder / "facts.json").read_text()) == facts
    differences = facts["largest_difference_to_dinov2_by_layer"]
    assert len(differences) == 2
    assert max(differences) < 1e-5
    model = Blip2ForConditionalGeneration.from_pretrained(folder)
    trained = [*model.qformer.parameters(), model.query_tokens]
    assert facts["qformer_parameters"] == sum(p.numel() for p in trained)
    assert facts["vision_parameters"] == sum(p.numel() for p in model.vision_model.parameters())
    assert facts["seed"] == source.SEED


def test_a_wrong_vit_shows_in_the_facts(state, tmp_path, monkeypatch):
    """The difference is measured against transformers' own DINOv2, not against ourselves."""
    whole = vision.blip2_vision_model

    def forgets(tensors, layers, size, vit):
        model = whole(tensors, layers, size, vit)
        model.encoder.layers[0].self_attn.qkv.bias.data.zero_()
        return model

    monkeypatch.setattr(vision, "read_onnx", lambda path: state)
    monkeypatch.setattr(vision, "blip2_vision_model", forgets)
    facts = build_untrained(Path("vit.onnx"), tmp_path / "x", SHAPE)
    assert max(facts["largest_difference_to_dinov2_by_layer"]) > 1e-2


def test_queries_differ_and_every_layer_looks_at_the_image(state):
    model, processor = untrained_vlm(state, SHAPE, VitShape(), seed=1)
    queries = model.query_tokens[0]
    assert torch.cdist(queries, queries)[~torch.eye(3, dtype=torch.bool)].min() > 0.5
    assert [layer.has_cross_attention for layer in model.qformer.encoder.layer] == [True, True]
    assert processor.num_query_tokens == 3
    assert not model.training
    pixels = torch.randn(2, 3, SHAPE.image_size, SHAPE.image_size)
    with torch.no_grad():
        first, second = model.get_image_features(pixels, return_dict=True).pooler_output
    assert first.shape == (3, model.config.text_config.hidden_size)
    assert not torch.allclose(first, second)
    assert not torch.allclose(first[0], first[1])


def test_the_seed_alone_decides_and_the_callers_stays(state):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    one, _ = untrained_vlm(state, SHAPE, VitShape(), seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    same, _ = untrained_vlm(state, SHAPE, VitShape(), seed=1)
    other, _ = untrained_vlm(state, SHAPE, VitShape(), seed=2)
    weights = one.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in same.state_dict().items())
    assert not torch.equal(other.query_tokens, one.query_tokens)
    assert torch.equal(
        other.vision_model.embeddings.class_embedding, one.vision_model.embeddings.class_embedding
    )


def test_pictures_are_sized_and_normalised_as_the_vit_knows_them(built):
    from PIL import Image

    processor = AutoProcessor.from_pretrained(built[0])
    grey = Image.new("RGB", (50, 20), (128, 128, 128))
    pixels = processor(images=grey, text="<s>", return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, SHAPE.image_size, SHAPE.image_size)
    wanted = [(128 / 255 - m) / s for m, s in zip(vision.IMAGE_MEAN, vision.IMAGE_STD, strict=True)]
    assert pixels[0].mean((1, 2)).tolist() == pytest.approx(wanted, abs=1e-3)
    assert processor.tokenizer.convert_tokens_to_ids(source.IMAGE_TOKEN) == 4


def test_the_package_takes_the_folder_as_a_source(built, tmp_path):
    """The real run starts from it: the port inherits the VPG and never reads the placeholder."""
    from tests.tiny import tiny_llm, tiny_tokenizer
    from vpgtrans.vlm.assemble import assemble_port
    from vpgtrans.weights.locate import locate_model

    tiny_llm("llama", hidden=24).save_pretrained(tmp_path / "llm")
    tiny_tokenizer().save_pretrained(tmp_path / "llm")
    files = locate_model(str(built[0])), locate_model(str(tmp_path / "llm"))
    ported = assemble_port(*files, torch.float32)
    assert ported.family.projector(ported.model).out_features == 24
    inherited = Blip2ForConditionalGeneration.from_pretrained(built[0])
    assert torch.equal(ported.model.query_tokens, inherited.query_tokens)
    for name, value in inherited.qformer.state_dict().items():
        assert torch.equal(ported.model.qformer.state_dict()[name], value), name
