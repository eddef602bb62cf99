"""Fitting by every method, honest hold-out, refusals, and files that are whole or refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.alignment.planted import as_tables, normal, related_rows, spec, table
from vpgtrans.alignment.anchors import Anchors
from vpgtrans.alignment.closed_form import moments_of, ridge
from vpgtrans.alignment.converter import Converter, check_anchor_count, fit_converter
from vpgtrans.alignment.rows import AnchorRows
from vpgtrans.errors import AlignmentError, CheckpointError, ShapeError

FITTED = ["ridge", "procrustes", "cosine", "cosine-sgd"]
FAST = {"held_out": 40, "min_anchors": 50, "batch_size": 32, "learning_rate": 0.5}


def world(width_s: int = 6, width_t: int = 5, noise: float = 0.3) -> tuple[AnchorRows, Any, Any, Anchors]:
    rows, _, _ = related_rows(400, width_s, width_t, noise=noise)
    return rows, *as_tables(rows)


@pytest.mark.parametrize("method", FITTED)
@pytest.mark.parametrize(("width_s", "width_t"), [(6, 5), (4, 9)])
def test_every_method_predicts_held_out_embeddings_far_better_than_a_constant(
    method: str, width_s: int, width_t: int
):
    _, source, target, anchors = world(width_s, width_t)
    converter = fit_converter(source, target, anchors, spec(method=method, **FAST), seed=0)
    metrics = converter.metrics
    assert converter.weight_TS.shape == (width_t, width_s)
    assert converter.weight_TS.dtype == converter.bias_T.dtype == torch.float32
    assert converter.method == method
    # the planted map is no rotation: Procrustes can only come near
    cosine, retrieval = (0.6, 0.02) if method == "procrustes" else (0.9, 0.25)
    assert metrics["centred_cosine"] > cosine
    assert metrics["retrieval_at_1"] > retrieval
    assert metrics["cosine"] > metrics["mean_baseline_cosine"]


def test_metrics_say_what_was_used():
    _, source, target, anchors = world()
    metrics = fit_converter(source, target, anchors, spec(**FAST), seed=0).metrics
    words = int(anchors.word_start.sum())
    held = words // 10
    assert {
        key: metrics[key] for key in ("num_anchors", "num_held_out", "num_fitted", "word_start_only")
    } == {
        "num_anchors": 400,
        "num_held_out": held,
        "num_fitted": words - held,
        "word_start_only": True,
    }
    assert (metrics["source_model"], metrics["source_width"]) == ("the-source", 6)
    assert (metrics["target_model"], metrics["target_width"]) == ("the-target", 5)
    assert metrics["pool"] == 400
    assert metrics["seconds"] > 0
    assert metrics["peak_memory_mb"] > 0
    assert metrics["ridge"] == 0.01
    json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize("method", FITTED)
def test_held_out_anchors_and_unused_rows_never_enter_the_fit(method: str):
    rows, source, target, anchors = world()
    asked = spec(method=method, **FAST)
    before = fit_converter(source, target, anchors, asked, seed=0)
    by_id = set(range(len(anchors))) - _fitted_places(rows, anchors, asked)
    places = torch.tensor(sorted(by_id))
    source.rows_VD[anchors.source_ids[places]] = 1e3
    target.rows_VD[anchors.target_ids[places]] = -1e3
    after = fit_converter(source, target, anchors, asked, seed=0)
    assert len(places) == (26 if method == "cosine-sgd" else 160)
    assert torch.equal(before.weight_TS, after.weight_TS)
    assert torch.equal(before.bias_T, after.bias_T)


def _fitted_places(rows: AnchorRows, anchors: Anchors, asked: Any) -> set[int]:
    from vpgtrans.alignment.rows import split_anchors

    split = split_anchors(
        rows,
        anchors.word_start,
        asked.held_out,
        asked.min_anchors,
        seed=0,
        fit_on_all=asked.method == "cosine-sgd",
    )
    place_of = {token: place for place, token in enumerate(anchors.source_ids.tolist())}
    return {place_of[token] for token in split.training.source_ids.tolist()}


def test_ridge_is_the_closed_form_on_the_training_anchors():
    rows, source, target, anchors = world()
    asked = spec(ridge=0.3, **FAST)
    training = rows.select(torch.tensor(sorted(_fitted_places(rows, anchors, asked))))
    weight_TS, bias_T = ridge(moments_of(training), 0.3)
    converter = fit_converter(source, target, anchors, asked, seed=0)
    torch.testing.assert_close(converter.weight_TS, weight_TS.float())
    torch.testing.assert_close(converter.bias_T, bias_T.float())


def test_all_anchors_are_used_where_word_starts_are_too_few():
    _, source, target, anchors = world()
    metrics = fit_converter(source, target, anchors, spec(**{**FAST, "min_anchors": 300}), seed=0).metrics
    assert (metrics["word_start_only"], metrics["num_fitted"]) == (False, 360)


def test_anchor_weights_reach_the_fit():
    _, source, target, anchors = world(noise=1.0)
    weights = torch.where(torch.arange(400) < 200, 50.0, 1.0)
    weighted = Anchors(anchors.source_ids, anchors.target_ids, anchors.word_start, weights)
    plain = fit_converter(source, target, anchors, spec(**FAST), seed=0)
    other = fit_converter(source, target, weighted, spec(**FAST), seed=0)
    assert not torch.allclose(plain.weight_TS, other.weight_TS, atol=1e-3)


def test_cosine_improves_on_ridge_in_its_own_loss():
    _, source, target, anchors = world(noise=2.0)
    losses = fit_converter(source, target, anchors, spec(method="cosine", **FAST), seed=0).metrics[
        "training_losses"
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("same", "epochs", "expected"), [(True, None, 5), (False, None, 8), (False, 2, 2)])
def test_cosine_sgd_takes_the_authors_epochs_unless_told(same: bool, epochs: int | None, expected: int):
    _, source, target, anchors = world()
    if same:
        anchors = Anchors(anchors.source_ids, anchors.source_ids, anchors.word_start)
    asked = spec(method="cosine-sgd", epochs=epochs, **FAST)
    metrics = fit_converter(source, target, anchors, asked, seed=0).metrics
    assert metrics["epochs"] == len(metrics["training_losses"]) == expected
    assert metrics["num_fitted"] == 400 - metrics["num_held_out"]


def test_random_keeps_lengths_and_has_no_bias():
    source, target = table(normal(500, 64)), table(normal(500, 128, seed=1))
    ids = torch.arange(500)
    anchors = Anchors(ids, ids, torch.ones(500, dtype=torch.bool))
    converter = fit_converter(source, target, anchors, spec(method="random"), seed=0)
    assert float(converter.weight_TS.var()) == pytest.approx(1 / 64, rel=0.05)
    assert torch.equal(converter.bias_T, torch.zeros(128))
    assert converter.metrics["num_fitted"] == 0
    assert abs(converter.metrics["cosine"]) < 0.05


@pytest.mark.parametrize("method", ["random", "cosine-sgd"])
def test_the_seed_decides_and_the_global_generator_stays_alone(method: str):
    _, source, target, anchors = world()
    asked = spec(method=method, **FAST)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first = fit_converter(source, target, anchors, asked, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(first.weight_TS, fit_converter(source, target, anchors, asked, seed=0).weight_TS)
    assert not torch.equal(first.weight_TS, fit_converter(source, target, anchors, asked, seed=1).weight_TS)


def test_identity_is_the_identity_between_equal_widths_and_refused_between_others():
    _, source, target, anchors = world(5, 5)
    converter = fit_converter(source, target, anchors, spec(method="identity", **FAST), seed=0)
    x_MS = normal(3, 5)
    assert torch.equal(converter(x_MS), x_MS)
    _, source, target, anchors = world(6, 5)
    with pytest.raises(ShapeError, match=r"source's is 6 and the target's 5"):
        fit_converter(source, target, anchors, spec(method="identity", **FAST), seed=0)


@pytest.mark.parametrize("method", ["random", "identity"])
def test_methods_without_a_fit_need_no_anchors_and_then_claim_nothing(method: str):
    nothing = Anchors(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    )
    converter = fit_converter(table(normal(4, 3)), table(normal(4, 3)), nothing, spec(method=method), seed=0)
    assert converter.metrics["num_anchors"] == converter.metrics["num_held_out"] == 0
    assert "cosine" not in converter.metrics


def test_from_file_takes_another_fit_and_measures_it_again(tmp_path: Path):
    _, source, target, anchors = world()
    made = fit_converter(source, target, anchors, spec(**FAST), seed=0)
    made.save(tmp_path)
    for file in (tmp_path, tmp_path / "converter.safetensors"):
        asked = spec(method="from-file", file=str(file), **FAST)
        taken = fit_converter(source, target, anchors, asked, seed=0)
        assert torch.equal(taken.weight_TS, made.weight_TS)
        assert taken.metrics["cosine"] == pytest.approx(made.metrics["cosine"])
        assert (taken.method, taken.metrics["file_method"]) == ("from-file", "ridge")


def test_from_file_refuses_other_widths_with_all_four(tmp_path: Path):
    Converter(normal(5, 7), normal(5), "ridge").save(tmp_path)
    _, source, target, anchors = world(6, 5)
    with pytest.raises(ShapeError, match=r"from width 7 to 5, the models have 6 and 5"):
        fit_converter(source, target, anchors, spec(method="from-file", file=str(tmp_path), **FAST), seed=0)


@pytest.mark.parametrize(("pairs", "other"), [("vocabulary", "captions"), ("captions", "vocabulary")])
@pytest.mark.parametrize("method", FITTED)
def test_too_few_anchors_name_number_threshold_and_ways_out(method: str, pairs: str, other: str):
    _, source, target, anchors = world()
    asked = spec(method=method, min_anchors=401, pairs=pairs)
    with pytest.raises(AlignmentError) as caught:
        fit_converter(source, target, anchors, asked, seed=0)
    message = str(caught.value)
    for part in ("only 400 anchors", "the-source and the-target", "converter.min_anchors is 401"):
        assert part in message
    for advice in (f"--pairs {other}", "lower converter.min_anchors", "init.projector to captions or random"):
        assert advice in message


def test_anchor_counts_can_be_checked_before_reading_any_table():
    check_anchor_count(300, spec())
    check_anchor_count(0, spec(method="random"))
    with pytest.raises(AlignmentError, match="only 299 anchors"):
        check_anchor_count(299, spec())


def test_an_exact_relation_survives_conversion_of_any_shape():
    rows, weight_TS, bias_T = related_rows(400, 6, 5)
    source, target, anchors = as_tables(rows)
    converter = fit_converter(source, target, anchors, spec(ridge=1e-9, **FAST), seed=0)
    x_BNS = normal(2, 3, 6)
    expected = x_BNS.double() @ weight_TS.T + bias_T
    torch.testing.assert_close(converter(x_BNS).double(), expected, atol=1e-4, rtol=1e-4)
    assert converter(x_BNS.bfloat16()).dtype == torch.float32
    assert cosine_similarity(converter(x_BNS).double(), expected, dim=-1).min() > 1 - 1e-6


def saved(folder: Path) -> Converter:
    _, source, target, anchors = world()
    converter = fit_converter(source, target, anchors, spec(**FAST), seed=0)
    converter.save(folder)
    return converter


def test_what_is_saved_comes_back_bit_for_bit(tmp_path: Path):
    made = saved(tmp_path / "new" / "folder")
    found = Converter.load(tmp_path / "new" / "folder")
    assert torch.equal(found.weight_TS, made.weight_TS)
    assert torch.equal(found.bias_T, made.bias_T)
    assert (found.method, found.metrics) == (made.method, made.metrics)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [
        "converter.json",
        "converter.safetensors",
    ]


def test_the_facts_file_is_plain_json(tmp_path: Path):
    saved(tmp_path)
    facts = json.loads((tmp_path / "converter.json").read_text())
    assert (facts["method"], facts["source_width"], facts["target_width"]) == ("ridge", 6, 5)
    assert set(facts["versions"]) == {"vpgtrans", "torch"}
    assert math.isfinite(facts["metrics"]["fvu"])


def test_float64_weights_are_saved_as_float32(tmp_path: Path):
    Converter(normal(3, 2, dtype=torch.float64), normal(3, dtype=torch.float64), "ridge").save(tmp_path)
    assert Converter.load(tmp_path).weight_TS.dtype == torch.float32


def test_a_bare_tensor_file_will_do(tmp_path: Path):
    made = saved(tmp_path)
    (tmp_path / "converter.json").unlink()
    bare = (tmp_path / "converter.safetensors").rename(tmp_path / "mine.safetensors")
    found = Converter.load(bare)
    assert torch.equal(found.weight_TS, made.weight_TS)
    assert (found.method, found.metrics) == ("from-file", {})


def _truncate(folder: Path) -> None:
    file = folder / "converter.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


def _other_tensors(folder: Path) -> None:
    Converter(normal(5, 6), normal(5), "ridge").save(folder / "other")
    (folder / "other" / "converter.safetensors").replace(folder / "converter.safetensors")


def _other_names(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weights": normal(5, 6)}, folder / "converter.safetensors")


def _other_shapes(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": normal(5, 6), "bias": normal(6)}, folder / "converter.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_truncate, "converter.safetensors is truncated or corrupt"),
        (_other_tensors, "the two were not written together"),
        (_other_names, r"is no converter: it needs weight .* has \{'weights': \(5, 6\)\}"),
        (_other_shapes, "is no converter"),
        (lambda folder: (folder / "converter.safetensors").unlink(), "no converter at"),
        (lambda folder: (folder / "converter.json").unlink(), "not written to its end"),
        (lambda folder: (folder / "converter.json").write_text('{"method": "rid'), "truncated or no JSON"),
        (lambda folder: (folder / "converter.json").write_text('{"method": "ridge"}'), "lacks sha256"),
        (lambda folder: (folder / "converter.json").write_text("[]"), "lacks sha256"),
    ],
)
def test_damaged_files_are_refused_in_words(tmp_path: Path, damage: Any, words: str):
    saved(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        Converter.load(tmp_path)


def test_progress_counts_every_anchor_that_is_read():
    _, source, target, anchors = world()
    opened: list[tuple[str, float | None]] = []
    advanced: dict[str, float] = {}

    class Spy:
        def task(self, title: str, total: float | None = None, unit: str = "it"):
            opened.append((title, total))
            return SpyTask(title)

        def note(self, text: str) -> None:
            pass

    class SpyTask:
        def __init__(self, title: str) -> None:
            self.title = title

        def __enter__(self):
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, amount: float = 1) -> None:
            advanced[self.title] = advanced.get(self.title, 0) + amount

        def show(self, **values: str | float) -> None:
            pass

    fit_converter(source, target, anchors, spec(**FAST), seed=0, progress=Spy())
    assert opened == [("gather anchors", 240)]
    assert advanced == {"gather anchors": 240}
