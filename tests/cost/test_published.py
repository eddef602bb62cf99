"""The published runs: presets that are what they say, the stored band, and how good the model is on them."""

import statistics

import pytest

from vpgtrans.cost.presets import config_of, preset_config, preset_name, preset_names, published_system
from vpgtrans.cost.speedup import given_speedup, published_speedup
from vpgtrans.cost.system import System, ported_system
from vpgtrans.cost.tables import table
from vpgtrans.cost.utilisation import fitted, published_checks, stored
from vpgtrans.cost.work import sizes_of
from vpgtrans.errors import CheckpointError, EstimateError, PortabilityError

BILLIONS = {
    "opt-125m": 0.125, "opt-2.7b": 2.65, "opt-6.7b": 6.66, "flan-t5-xl": 2.78, "flan-t5-xxl": 11.0,
    "llama-7b": 6.74, "llama-13b": 13.0, "vicuna-7b": 6.74, "llama-3-8b": 8.03, "llama-3-70b": 70.6,
    "mistral-7b": 7.24, "gpt-j-6b": 6.05,
}  # fmt: skip


@pytest.mark.parametrize(("name", "billions"), BILLIONS.items())
def test_presets_have_the_parameters_that_their_names_promise(name: str, billions: float) -> None:
    config = preset_config(name)
    assert config is not None
    assert sizes_of(
        System(name, config, qformer={}, vision={"model_type": "blip_2_vision_model"})
    ).parameters["llm"] / 1e9 == pytest.approx(billions, rel=0.02)


def test_blip2_presets_have_the_vpg_of_the_paper() -> None:
    source = preset_config("Salesforce/blip2-flan-t5-xxl")
    llm = preset_config("google/flan-t5-xxl")
    assert source is not None
    assert llm is not None
    sizes = sizes_of(ported_system(source, llm, "xxl")).parameters
    assert sizes["vision_encoder"] / 1e6 == pytest.approx(986, rel=0.01)
    assert sizes["qformer"] / 1e6 == pytest.approx(105, rel=0.01)
    assert sizes["projector"] == 768 * 4096 + 4096


def test_models_that_are_nowhere_name_the_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(EstimateError, match=r"no config of 'nobody/opt-6.7c'.*nearest: opt-6.7b.*flan-t5-xl"):
        config_of("nobody/opt-6.7c")
    assert preset_name("Salesforce/blip2-opt-2.7b") == "opt-2.7b"
    assert preset_name("nobody/none") is None
    assert set(BILLIONS) <= set(preset_names())


def test_confused_models_are_refused() -> None:
    vlm, llm = preset_config("blip2-opt-2.7b"), preset_config("opt-2.7b")
    with pytest.raises(CheckpointError, match="VLM"):
        ported_system(llm or {}, llm or {}, "x")
    with pytest.raises((CheckpointError, PortabilityError)):
        ported_system(vlm or {}, vlm or {}, "x")


def test_the_band_is_what_the_runs_give_and_as_good_as_the_page_says() -> None:
    checks = published_checks()
    assert len(checks) == 11
    errors = [abs(check.error) for check in checks]
    assert sum(error <= 0.3 for error in errors) >= 9
    assert statistics.median(errors) <= 0.15
    fresh = fitted()
    kept = stored()
    assert (kept.point, kept.low, kept.high) == pytest.approx((fresh.point, fresh.low, fresh.high), rel=0.01)
    assert f"{statistics.median(errors):.0%}" in kept.source


def test_a_run_is_never_predicted_from_itself() -> None:
    checks = published_checks()
    for check in checks:
        others = [one.implied for one in checks if one is not check]
        # more utilisation, fewer hours: the sign of the error tells where the others' median lies
        assert (statistics.median(others) < check.implied) == (check.error > 0)


def test_every_published_run_names_its_source_and_what_it_assumes() -> None:
    for row in table("runs")["runs"].values():
        assert row["source"]
        assert "assumed" in row
        assert published_system(row).vpg_dtype == "float16"


def test_speedups_come_from_the_likes_and_say_so() -> None:
    exact = published_speedup("opt-2.7b", "opt-6.7b", "opt", "opt", 6_700_000_000)
    assert exact.value == pytest.approx(129 / 13.8)
    assert "129 M pairs against 13.8 M" in exact.source
    row = published_speedup("flan-t5-base", "flan-t5-xl", "t5", "t5", 2_800_000_000)
    assert row.value == 2.0
    across = published_speedup("opt-6.7b", "llama-7b", "opt", "llama", 6_700_000_000)
    assert across.value == 2.0
    assert "3B or less" in across.source
    assert "2 more where the transfer never passed scratch" in across.source
    sizes = published_speedup(None, None, "llama", "llama", 13_000_000_000)
    assert 129 / 13.8 < sizes.value < 121.6 / 5.3
    assert published_speedup("opt-350m", "flan-t5-base", "opt", "t5", 10**8).value == 1.0
    assert given_speedup(3).source == "given"
    for wrong in (0, -1, 1e6, float("nan")):
        with pytest.raises(EstimateError, match="speed-up"):
            given_speedup(wrong)
