"""Stored features: the same loss, one run per image, and never a stale one."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil

from tests.vlm.batches import causal_batch
from vpgtrans.data.batches import Collator
from vpgtrans.data.prompts import PromptEncoder
from vpgtrans.data.records import DatasetImage, ImageFile, Record, TextPair
from vpgtrans.errors import DataError, SpaceError
from vpgtrans.recipe import Prompt
from vpgtrans.vlm import features as features_module
from vpgtrans.vlm.assemble import Ported, assemble_port
from vpgtrans.vlm.features import FeatureStore, collect_features, content_key
from vpgtrans.vlm.forward import Trainee
from vpgtrans.weights.locate import ModelFiles


@pytest.fixture
def ported(source: ModelFiles, saved_llm: Callable[..., tuple[Any, ModelFiles]]) -> Ported:
    return assemble_port(source, saved_llm("llama")[1], torch.float32)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Five images, one of them in two records."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    made = []
    for number in range(5):
        path = folder / f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
        made.append(Record(str(number), ImageFile(path), (TextPair("", f"a red circle {number}"),)))
    return [*made, replace(made[2], id="again")]


class Counter:
    """Counts images that pass the vision encoder."""

    def __init__(self, ported: Ported) -> None:
        self.images = 0
        ported.model.vision_model.encoder.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: Any, args: Any, kwargs: Any) -> None:
        self.images += kwargs["inputs_embeds"].shape[0]


def pixels_of(ported: Ported, record: Record) -> torch.Tensor:
    return ported.image_processor(images=[record.image.open()], return_tensors="pt").pixel_values


@pytest.mark.parametrize("cut", ["vision", "vpg"])
def test_stored_features_are_what_the_model_gives(
    cut: Any, ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    counter = Counter(ported)
    store = collect_features(ported, records, cut, tmp_path / "store", batch_size=2)
    assert counter.images == len(store) == 5
    assert store.cut == cut
    for record in records:
        with torch.no_grad():
            wanted = ported.family.vision_features(ported.model, pixels_of(ported, record))
            if cut == "vpg":
                wanted = ported.family.vpg_output(ported.model, wanted)
        torch.testing.assert_close(store[record.image.key], wanted[0], rtol=1e-6, atol=1e-6)
        assert torch.equal(store(record), store[record.image.key])
        assert record.image.key in store
    assert "elsewhere" not in store


@pytest.mark.parametrize("cut", ["vision", "vpg"])
def test_loss_through_the_collator_is_the_same(
    cut: Any, ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    encoder = PromptEncoder(
        ported.tokenizer, ported.image_token_id, 4, "bos-image-text", Prompt(template="{answer}"), False
    )
    store = collect_features(ported, records, cut, tmp_path / "store", batch_size=5)
    pairs = [(record, record.texts[0]) for record in records]
    uncached = Collator(encoder, ported.image_processor)(pairs)
    cached = Collator(encoder, ported.image_processor, store, cut)(pairs)
    assert cached.pixel_values is None
    assert cached.features is not None
    assert len(cached.features) == 5
    trainee = Trainee(ported)
    with torch.no_grad():
        assert torch.equal(trainee.loss(cached)[0], trainee.loss(uncached)[0])


def test_an_unchanged_store_is_reopened(ported: Ported, records: list[Record], tmp_path: Path) -> None:
    counter = Counter(ported)
    first = collect_features(ported, records, "vision", tmp_path)
    again = collect_features(ported, records, "vision", tmp_path)
    assert counter.images == 5
    assert again.folder == first.folder
    assert (
        again.key == first.key == content_key(ported, {r.image.key: r for r in records}, "vision", "float32")
    )


def test_anything_that_matters_makes_another_store(
    ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    def folder(cut: Any = "vision", these: list[Record] = records, dtype: Any = "float32") -> Path:
        return collect_features(ported, these, cut, tmp_path, dtype=dtype).folder

    seen = [folder()]

    def is_new(place: Path) -> bool:
        seen.append(place)
        return place not in seen[:-1]

    assert is_new(folder(cut="vpg"))
    assert is_new(folder(dtype="float16"))
    assert is_new(folder(these=records[:3]))
    Image.new("RGB", (16, 16), (1, 2, 3)).save(records[1].image.path)
    assert is_new(folder())
    ported.image_processor = BlipImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.1, 0.2, 0.3]
    )
    assert is_new(folder())
    with torch.no_grad():
        ported.model.vision_model.encoder.layers[1].mlp.fc1.bias[3] += 1e-3
    assert is_new(folder())
    ported.model.config.vision_config.layer_norm_eps = 1e-3
    assert is_new(folder())


def test_what_does_not_matter_keeps_the_store(ported: Ported, records: list[Record], tmp_path: Path) -> None:
    first = collect_features(ported, records, "vision", tmp_path).folder
    with torch.no_grad():
        ported.model.language_projection.weight += 1
        ported.model.query_tokens += 1
        ported.model.vision_model.post_layernorm.bias += 1
    assert collect_features(ported, records, "vision", tmp_path).folder == first
    vpg = collect_features(ported, records, "vpg", tmp_path).folder
    with torch.no_grad():
        ported.model.query_tokens += 1
    assert collect_features(ported, records, "vpg", tmp_path).folder != vpg


def test_float16_halves_the_file_and_rounds_to_11_bits(
    ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    full = collect_features(ported, records, "vision", tmp_path)
    half = collect_features(ported, records, "vision", tmp_path, dtype="float16")
    size = (full.folder / "features.bin").stat().st_size
    assert size == 5 * 5 * 20 * 4
    assert (half.folder / "features.bin").stat().st_size * 2 == size
    key = records[0].image.key
    assert half[key].dtype == torch.float32
    torch.testing.assert_close(half[key], full[key], rtol=2**-11, atol=1e-7)
    assert torch.equal(half[key], full[key].half().float())


def test_values_beyond_float16_are_an_error(ported: Ported, records: list[Record], tmp_path: Path) -> None:
    with torch.no_grad():
        ported.model.vision_model.encoder.layers[1].mlp.fc2.bias += 70000
    with pytest.raises(DataError, match="beyond float16"):
        collect_features(ported, records, "vision", tmp_path, dtype="float16")
    assert not list(tmp_path.rglob("index.json"))
    assert not list(tmp_path.rglob("features.bin"))


def test_dropout_is_off_while_collecting_and_modes_come_back(
    ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    still = collect_features(ported, records, "vpg", tmp_path / "one")
    ported.model.qformer.train()
    modes = [module.training for module in ported.model.modules()]
    again = collect_features(ported, records, "vpg", tmp_path / "two")
    assert [module.training for module in ported.model.modules()] == modes
    assert True in modes
    assert False in modes
    key = records[0].image.key
    assert torch.equal(still[key], again[key])


def test_an_interrupted_run_leaves_nothing_that_counts(
    ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    broken = [*records[:4], Record("x", ImageFile(tmp_path / "images" / "x.png"), records[0].texts)]
    (tmp_path / "images" / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read"):
        collect_features(ported, broken, "vision", tmp_path / "store", batch_size=2)
    assert not list((tmp_path / "store").rglob("*.bin"))
    assert not list((tmp_path / "store").rglob("*.tmp"))
    (tmp_path / "images" / "x.png").unlink()
    with pytest.raises(DataError, match="x.png cannot be read"):
        collect_features(ported, broken, "vision", tmp_path / "store")


def test_a_damaged_store_is_written_again(ported: Ported, records: list[Record], tmp_path: Path) -> None:
    counter = Counter(ported)
    store = collect_features(ported, records, "vision", tmp_path)
    wanted = store[records[3].image.key]
    path = store.folder / "features.bin"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=r"1,996 bytes, its index says 2,000"):
        FeatureStore(store.folder)
    assert torch.equal(collect_features(ported, records, "vision", tmp_path)[records[3].image.key], wanted)
    (store.folder / "index.json").write_text(json.dumps({"cut": "vision"}))
    with pytest.raises(DataError, match="no finished feature store"):
        FeatureStore(store.folder)
    collect_features(ported, records, "vision", tmp_path)
    assert counter.images == 15


def test_returned_features_do_not_alias_the_file(
    ported: Ported, records: list[Record], tmp_path: Path
) -> None:
    store = collect_features(ported, records, "vision", tmp_path)
    key = records[0].image.key
    before = store[key].clone()
    store[key].zero_()
    assert torch.equal(store[key], before)


def test_messages(ported: Ported, records: list[Record], tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(DataError, match="there are no images"):
        collect_features(ported, [], "vision", tmp_path)
    store = collect_features(ported, records, "vision", tmp_path)
    with pytest.raises(DataError, match="image nowhere is not among the 5 stored features"):
        store["nowhere"]

    def full(folder: Path, num_bytes: int, what: str) -> None:
        raise SpaceError(f"{what}: {num_bytes}")

    monkeypatch.setattr(features_module, "need_space", full)
    with pytest.raises(SpaceError, match="storing vpg features: 1920"):
        collect_features(ported, records, "vpg", tmp_path)


def test_images_of_a_datasets_table(ported: Ported, tmp_path: Path) -> None:
    rows = [{"image": Image.new("RGB", (16, 16), (shade, 9, 9))} for shade in (10, 200)]
    table = [Record(str(n), DatasetImage(rows, n, "image", "toy"), ()) for n in range(2)]
    first = collect_features(ported, table, "vision", tmp_path)
    assert not torch.allclose(first["toy[0].image"], first["toy[1].image"])
    rows[1]["image"] = Image.new("RGB", (16, 16), (201, 9, 9))
    assert collect_features(ported, table, "vision", tmp_path).folder != first.folder


def test_progress_counts_images(ported: Ported, records: list[Record], tmp_path: Path) -> None:
    seen: list[tuple[str, float | None, str]] = []
    advanced: list[float] = []

    class Task:
        def __enter__(self) -> "Task":
            return self

        def __exit__(self, *args: object) -> None: ...

        def advance(self, amount: float = 1) -> None:
            advanced.append(amount)

        def show(self, **values: str | float) -> None: ...

    class Progress:
        def task(self, title: str, total: float | None = None, unit: str = "it") -> Task:
            seen.append((title, total, unit))
            return Task()

        def note(self, text: str) -> None: ...

    collect_features(ported, records, "vision", tmp_path, batch_size=2, progress=Progress())
    assert seen == [("vision features", 5, "images")]
    assert advanced == [2, 2, 1]


def test_unique_images_of_a_batch_are_enough(ported: Ported, records: list[Record], tmp_path: Path) -> None:
    """A row per image, whatever texts there are: two texts of one image read one row."""
    store = collect_features(ported, records, "vpg", tmp_path)
    batch = causal_batch(ported, [[5, 6], [7, 8], [9, 2]], [0, 0, 0], [0, 1, 0])
    stored = replace(
        batch,
        pixel_values=None,
        features=torch.stack([store[records[0].image.key], store[records[1].image.key]]),
        features_cut="vpg",
    )
    pixels = torch.cat([pixels_of(ported, records[0]), pixels_of(ported, records[1])])
    with torch.no_grad():
        wanted = Trainee(ported).loss(replace(batch, pixel_values=pixels))[0]
        torch.testing.assert_close(Trainee(ported).loss(stored)[0], wanted, rtol=1e-6, atol=1e-5)
