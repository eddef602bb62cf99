"""``vpgtrans estimate`` at the command line: data statistics, probe, and the ledger of ``transfer``."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.transfer.world import make_world
from vpgtrans.cli.app import main
from vpgtrans.recipe import load_recipe
from vpgtrans.transfer.estimate import Asked, run_estimate
from vpgtrans.transfer.folder import RunFolder
from vpgtrans.transfer.ledger import estimate_here, record
from vpgtrans.transfer.pipeline import run_transfer
from vpgtrans.transfer.probe import run_probe, this_gpu

SHORT = ("--source", "blip2-opt-2.7b", "--target", "opt-6.7b", "--pairs", "13.8M")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("estimate"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vpgtrans", "estimate", *(str(word) for word in words)])
        monkeypatch.setenv("COLUMNS", "220")
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return run


def test_the_short_form_as_json(cli) -> None:
    code, out, err = cli(*SHORT, "--json")
    assert code == 0, err
    one = json.loads(out)
    assert set(one) == {"stages", "total", "scratch", "speedup", "assumptions"}
    assert one["total"]["pairs"] == pytest.approx(13.8e6)
    assert one["speedup"]["value"] == pytest.approx(129 / 13.8)
    assert "configs: source preset, target preset" in one["assumptions"]


def test_targets_side_by_side_tables_paragraph_and_chart(cli, tmp_path: Path) -> None:
    words = ("--source", "blip2-opt-2.7b", "--targets", "opt-1.3b,opt-6.7b", "--pairs", "1M")
    code, out, err = cli(*words, "--gpu", "a100-40g", "--gpu", "t4", "--chart", tmp_path / "c.png")
    assert code == 0, err
    assert "Side by side" in out
    assert "logits only where there is loss" in out
    assert out.count("Porting the vision side to") == 4
    assert (tmp_path / "c.png").stat().st_size > 5000
    code, out, _ = cli(*words, "--json")
    assert [one["target"] for one in json.loads(out)] == ["opt-1.3b", "opt-6.7b"]


def test_a_published_row_stands_against_it(cli) -> None:
    code, out, _ = cli(*SHORT, "--compare-to", "blip2-opt-6.7b", "--price-per-gpu-hour", "2", "--json")
    one = json.loads(out)
    assert code == 0
    assert one["scratch"]["name"] == "blip2-opt-6.7b"
    assert one["scratch"]["pairs"] == 129_000_000
    assert "631.5 h" in one["speedup"]["source"]
    assert one["total"]["usd"] == pytest.approx(2 * one["total"]["gpu_hours"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((*SHORT, "--gpu", "a100-41g"), "unknown GPU"),
        ((*SHORT, "--price-per-gpu-hour", "-4"), "no price"),
        ((*SHORT, "--gpus", "0"), "--gpus 0"),
        (
            (*SHORT, "--compare-to", "nothing"),
            "no published run of that name; there are scratch, blip2-opt-6.7b",
        ),
        ((*SHORT, "--speedup", "-1"), "speed-up"),
        ((*SHORT[:4], "--pairs", "lots"), "--pairs lots"),
        (SHORT[:4], "--pairs"),
        (("--source", "opt-2.7b", "--target", "opt-6.7b", "--pairs", "1M"), "VLM"),
        (
            ("--source", "blip2-opt-2.7b", "--target", "nobody/nothing", "--pairs", "1M"),
            "Presets that work offline",
        ),
        (
            (*SHORT[:2], "--target", "llama-3-70b", "--pairs", "1M", "--gpu", "t4"),
            "does not fit NVIDIA T4 at batch 1",
        ),
        (("opt-2.7b-to-6.7b", "--pairs", "1M"), "contradicts"),
        ((*SHORT, "--probe"), "--probe measures a recipe"),
    ],
)
def test_bad_input_is_one_line(cli, monkeypatch, words: tuple[str, ...], expected: str) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, out, err = cli(*words)
    assert (code, out) == (1, "")
    assert expected in err
    assert len(err.strip().splitlines()) == 1


def test_data_that_is_here_is_tokenised_with_the_targets_tokenizer(world: Path) -> None:
    one = run_estimate(Asked(recipe=load_recipe(str(world))))[0]
    assert any("measured: 24 texts of 12 images" in note for note in one.assumptions)
    assert any("24 texts with the target's tokenizer" in note for note in one.assumptions)
    assert [stage.pairs for stage in one.stages] == [24, 24]
    assert 2 < one.plans[0].texts.logit_tokens < one.plans[0].texts.tokens < 64
    assert one.plans[0].images == 12
    assert one.plans[0].cached


def test_the_probe_runs_the_real_loop_and_leaves_nothing(world: Path) -> None:
    before = sorted(world.parent.rglob("*"))
    probe = run_probe(load_recipe(str(world)), steps=6)
    assert sorted(world.parent.rglob("*")) == before
    assert set(probe.seconds_per_pair) == {"warmup", "finetune"}
    for middle, low, high in probe.seconds_per_pair.values():
        assert 0 < low <= middle <= high < 5
    assert probe.seconds_per_image > 0
    assert all(0.05 < peak < 20 for peak in probe.peak_memory_gb.values())
    one = run_estimate(Asked(recipe=load_recipe(str(world)), price=3.0), probe)[0]
    assert one.total.usd == pytest.approx(3 * one.total.gpu_hours)
    assert any(note.startswith("time and memory measured: 6 steps") for note in one.assumptions)


def test_transfer_writes_estimate_against_measured(world: Path) -> None:
    recipe = load_recipe(str(world), ["export.verify=false"])
    folder = world.parent / "run"
    guess = estimate_here(recipe)
    assert guess is not None
    result = run_transfer(recipe, folder)
    first = record(RunFolder(folder), guess, result)
    record(RunFolder(folder), guess, result)
    lines = [json.loads(line) for line in (folder / "estimates.jsonl").read_text().splitlines()]
    assert lines == [first, first]
    assert first["measured_hours"] == pytest.approx(sum(stage.seconds for stage in result.stages) / 3600)
    assert [stage["name"] for stage in first["stages"]] == ["warmup", "finetune"]
    assert set(first["estimate"]) == {"stages", "total", "scratch", "speedup", "assumptions"}
    assert RunFolder(folder).problems(recipe) == []


def test_this_machine_is_a_gpu_with_measured_peaks() -> None:
    gpu = this_gpu()
    assert gpu.peak("float32") > 1e8
    assert gpu.memory_gb > 1
    assert gpu.name == "cpu" or gpu.price is not None
