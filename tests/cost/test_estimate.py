"""Plans, prices, savings, memory, words and the chart."""

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from vpgtrans.cost.chart import bar_chart
from vpgtrans.cost.estimate import estimate, require_fit
from vpgtrans.cost.hardware import find_gpu
from vpgtrans.cost.memory import (
    feature_bytes,
    largest_batch,
    memory_of,
    smallest_fitting,
    what_to_turn_on,
)
from vpgtrans.cost.plan import (
    FINE_TUNED,
    DataFacts,
    StagePlan,
    Texts,
    default_stages,
    parse_pairs,
    stages_of_recipe,
)
from vpgtrans.cost.presets import config_of
from vpgtrans.cost.results import Estimate, Measured, Question
from vpgtrans.cost.savings import savings_of, sharing_factor
from vpgtrans.cost.speedup import Speedup
from vpgtrans.cost.system import System, ported_system
from vpgtrans.cost.utilisation import Utilisation
from vpgtrans.cost.words import paragraph
from vpgtrans.cost.work import sizes_of
from vpgtrans.errors import EstimateError
from vpgtrans.recipe import Recipe, check_recipe, load_recipe

USE = Utilisation(0.4, 0.3, 0.5, "assumed: for the test")
GPU = find_gpu("a100-40g")
TEXTS = Texts(24, 24, "assumed")


@pytest.fixture(scope="module")
def system() -> System:
    return ported_system(config_of("blip2-opt-2.7b")[0], config_of("opt-1.3b")[0], "opt-1.3b")


def plan(**changes: Any) -> StagePlan:
    values: dict[str, Any] = {
        "name": "finetune", "pairs": 1e6, "batch": 128, "micro_batch": 16, "trained": FINE_TUNED,
        "texts": TEXTS, "images": 1e6,
    }  # fmt: skip
    return StagePlan(**{**values, **changes})


def ask(system: System, *plans: StagePlan, speedup: float = 4.0) -> Question:
    return Question(system, plans or (plan(),), Speedup(speedup, "for the test"))


def recipe(**changes: Any) -> Recipe:
    stage = {"name": "one", "train": ["projector"], "learning_rate": 1e-4, "batch_size": 10}
    tree = {
        "name": "r", "source": {"model": "blip2-opt-2.7b"}, "target": {"model": "opt-1.3b"},
        "data": {"train": [{"path": "nowhere.json"}]},
        "stages": [{**stage, "epochs": 2}, {**stage, "name": "two", "max_steps": 30}],
    }  # fmt: skip
    return check_recipe({**tree, **changes})


def stages(one: Recipe, **options: Any) -> list[StagePlan]:
    return stages_of_recipe(one, is_encoder_decoder=False, feature_bytes=1000, **options)[0]


def test_pairs_are_read_from_data_steps_or_what_is_given() -> None:
    facts = {recipe().data: DataFacts(500, 100, 5, "measured")}
    assert [one.pairs for one in stages(recipe(), facts=facts)] == [1000, 300]
    assert [one.pairs for one in stages(recipe(), pairs=1200)] == [900, 300]
    with pytest.raises(EstimateError, match="give --pairs"):
        stages(recipe())
    with pytest.raises(EstimateError, match=r"--pairs 5,000 contradicts .*one 1,000, two 300: 1,300 pairs"):
        stages(recipe(), facts=facts, pairs=5000)
    with pytest.raises(EstimateError, match="contradicts"):
        stages(recipe(), pairs=200)
    with pytest.raises(EstimateError, match="no stages"):
        stages(recipe(stages=[]), pairs=10)


def test_shipped_recipes_are_priced_without_their_data() -> None:
    plans, notes = stages_of_recipe(
        load_recipe("opt-2.7b-to-6.7b"), is_encoder_decoder=False, feature_bytes=1_400_000
    )
    assert sum(one.pairs for one in plans) == pytest.approx(13.8e6, rel=0.01)
    assert any("published sizes; the files are not here" in note for note in notes)
    assert not any(one.cached for one in plans)  # 2 TB of features
    small = stages(recipe(), pairs=1200)
    assert all(one.cached for one in small)
    assert not any(one.cached for one in stages(recipe(features={"cache": "off"}), pairs=1200))


@pytest.mark.parametrize(
    ("word", "pairs"), [("13.8M", 13.8e6), ("558k", 558e3), ("1,000", 1000), ("2B", 2e9)]
)
def test_pairs_in_words(word: str, pairs: float) -> None:
    assert parse_pairs(word) == pytest.approx(pairs)


@pytest.mark.parametrize("word", ["many", "-3", "0", "1e20", ""])
def test_pairs_that_are_none(word: str) -> None:
    with pytest.raises(EstimateError, match="--pairs"):
        parse_pairs(word)


def test_the_short_form_has_the_papers_two_stages() -> None:
    plans, _ = default_stages(13.8e6, False)
    assert [one.name for one in plans] == ["warmup", "finetune"]
    assert plans[0].pairs == pytest.approx(1.4e6)
    assert plans[0].trained == {"projector"}
    assert default_stages(1e6, True)[0][0].texts == Texts(1, 24, plans[0].texts.source)


def test_json_has_exactly_the_shape_of_the_issue(system: System) -> None:
    shape = {
        "name",
        "pairs",
        "flops",
        "gpu_hours",
        "gpu_hours_low",
        "gpu_hours_high",
        "usd",
        "peak_memory_gb",
    }
    one = estimate(ask(system), GPU, USE).to_dict()
    assert set(one) == {"stages", "total", "scratch", "speedup", "assumptions"}
    assert set(one["total"]) == set(one["scratch"]) == set(one["stages"][0]) == shape
    assert set(one["speedup"]) == {"value", "source"}
    assert any("utilisation 40%" in note for note in one["assumptions"])
    assert any("VPGTrans table 4" in note for note in one["assumptions"])


def test_hours_grow_with_pairs_and_scratch_is_speedup_times_as_much(system: System) -> None:
    one = estimate(ask(system), GPU, USE)
    twice = estimate(ask(system, plan(pairs=2e6)), GPU, USE)
    assert twice.total.gpu_hours == pytest.approx(2 * one.total.gpu_hours)
    assert one.scratch.gpu_hours == pytest.approx(4 * one.total.gpu_hours)
    assert one.total.gpu_hours_low < one.total.gpu_hours < one.total.gpu_hours_high
    assert one.total.usd == pytest.approx(4.10 * one.total.gpu_hours)
    row = estimate(replace(ask(system), scratch_pairs=7e6, scratch_name="row"), GPU, USE)
    assert (row.scratch.name, row.scratch.pairs) == ("row", 7e6)
    paper = estimate(replace(ask(system), published="blip2-opt-6.7b"), GPU, USE).scratch
    assert (paper.gpu_hours, paper.gpu_hours_low, paper.pairs) == (631.5, 631.5, 129e6)
    newer = estimate(replace(ask(system), published="blip2-opt-6.7b"), find_gpu("h100"), USE).scratch
    assert newer.gpu_hours_low < newer.gpu_hours < 400
    with pytest.raises(EstimateError, match="--gpus 0"):
        estimate(ask(system), GPU, USE, gpus=0)


def test_small_batches_are_not_priced_at_peak(system: System) -> None:
    half = replace(system, vpg_dtype="bfloat16")
    small = estimate(ask(half, plan(micro_batch=1)), find_gpu("h100"), USE)
    large = estimate(ask(half, plan(micro_batch=64)), find_gpu("h100"), USE)
    assert small.total.flops == pytest.approx(large.total.flops, rel=0.01)
    assert small.total.gpu_hours > 1.5 * large.total.gpu_hours
    assert small.memory_bound > large.memory_bound


def test_caching_computes_each_image_once(system: System) -> None:
    stored = plan(cached=True, images=1e5)
    rows = {row.name: row for row in savings_of(system, stored)}
    saving = rows["vision features stored"]
    assert saving.state == "on"
    priced = estimate(ask(system, stored), GPU, USE)
    assert priced.total.flops == pytest.approx(saving.with_it, rel=0.01)
    assert 0.3 < saving.share < 0.7
    assert priced.cache_gb == pytest.approx(1e5 * 257 * 1408 * 4 / 1e9)
    trained = plan(trained=FINE_TUNED | {"vision_encoder"})
    assert savings_of(system, trained)[0].share == 0


def test_prefix_sharing_saves_the_soft_prompt_of_all_texts_but_one(system: System) -> None:
    texts = plan(texts_per_visit=5, sharing=True)
    factor = sharing_factor(system, texts)
    assert factor == pytest.approx((32 + 5 * 24) / (5 * 56), rel=0.1)
    assert sharing_factor(system, plan(texts_per_visit=5)) == 1.0
    on = estimate(ask(system, texts), GPU, USE).total.flops
    off = estimate(ask(system, replace(texts, sharing=False)), GPU, USE).total.flops
    row = next(row for row in savings_of(system, texts) if "soft prompt" in row.name)
    assert off - on == pytest.approx(row.without - row.with_it, rel=0.01)


def test_supervised_logits_save_the_head_elsewhere(system: System) -> None:
    row = savings_of(system, plan())[-1]
    head = 4 * 2048 * 50272 * 32 * 1e6
    assert row.without - row.with_it == pytest.approx(head, rel=0.02)


def test_memory_is_the_sum_of_what_is_held(system: System) -> None:
    memory = memory_of(system, plan(), 16)
    sizes = sizes_of(system)
    assert memory.weights == pytest.approx(
        (2 * sizes.parameters["llm"] + 4 * sum(v for k, v in sizes.parameters.items() if k != "llm")) / 1e9
    )
    trained = sizes.trained(FINE_TUNED)
    assert memory.gradients == pytest.approx(4 * trained / 1e9)
    assert memory.optimizer == pytest.approx(8 * trained / 1e9)
    assert memory_of(system, plan(), 32).activations > 1.5 * memory.activations
    assert memory_of(system, plan(), 16, checkpointing=True).total < memory.total
    assert memory_of(system, plan(), 16, llm_bytes=1.0).weights < memory.weights
    assert memory_of(system, plan(), 16, shards=4).weights == pytest.approx(memory.weights / 4)


def test_the_largest_batch_fits_and_more_does_not(system: System) -> None:
    small = find_gpu("mine:100:16")
    most = largest_batch(system, plan(), small)
    assert memory_of(system, plan(), most).total <= 16
    assert memory_of(system, plan(), most + max(4, most // 20)).total > 16


def test_too_small_a_gpu_says_the_smallest_that_holds_it(system: System) -> None:
    tiny = find_gpu("tiny:10:7")
    one = estimate(ask(system), tiny, USE)
    assert not one.fits
    with pytest.raises(
        EstimateError, match=r"does not fit tiny .* at batch 1: it needs .* GB, there are 7 GB"
    ):
        require_fit([one])
    assert smallest_fitting(system, plan()).endswith("(16 GB)")
    assert what_to_turn_on(system, plan(), tiny).startswith("FSDP over 2")
    llm = replace(system, llm=config_of("opt-6.7b")[0])
    assert what_to_turn_on(llm, plan(), find_gpu("t4")).startswith("the frozen LLM in 8 bit (")
    assert "smaller LLM" in what_to_turn_on(system, plan(), find_gpu("tiny:10:1"))
    require_fit([one, estimate(ask(system), GPU, USE)])
    shared = estimate(ask(system), tiny, USE, gpus=8)
    assert shared.fits
    assert any("FSDP over the 8 GPUs" in note for note in shared.assumptions)


def test_a_probe_replaces_the_band(system: System) -> None:
    probe = Measured({"finetune": (0.01, 0.009, 0.012)}, 0.002, {"finetune": 3.5}, "this CPU", 20)
    one = estimate(ask(system, plan(cached=True, images=1e5)), GPU, USE, probe=probe)
    assert one.total.gpu_hours == pytest.approx((1e6 * 0.01 + 1e5 * 0.002) / 3600)
    assert one.total.gpu_hours_high == pytest.approx((1e6 * 0.012 + 1e5 * 0.002) / 3600)
    assert one.total.peak_memory_gb == 3.5
    assert any("measured: 20 steps of the real loop" in note for note in one.assumptions)
    assert not any("utilisation" in note for note in one.assumptions)


def test_words_and_chart(system: System, tmp_path) -> None:
    one: Estimate = estimate(ask(system), GPU, USE, gpus=4)
    text = paragraph(one)
    assert "4 x NVIDIA A100" in text
    assert "4.0 times as much" in text
    assert "for the test" in text
    assert "\n" not in text
    assert "USD" not in paragraph(estimate(ask(system), find_gpu("mine:100:40"), USE))
    image = Image.open(bar_chart([one, one], tmp_path / "plots" / "c.png"))
    assert image.size[0] == 900
    assert len(image.convert("RGB").getcolors(100000) or []) > 5
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["c.png"]
    assert feature_bytes(system) == 257 * 1408 * 4
