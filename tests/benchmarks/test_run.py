"""The real run's arms: valid recipes that differ in one thing, run once, chosen without the test data."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks.real_llms import run
from benchmarks.real_llms.run import DIRECTIONS, INITS, RATES, TASKS, Place
from tests.benchmarks.arms import fake_result
from vpgtrans.console import Console
from vpgtrans.recipe import Recipe, differing_keys, load_recipe

ROOT = Path("benchmarks/real_llms/assets")
QUIET = Console(quiet=True)
BEST = {"ours": 5e-3, "random": 2e-2}


def arm_recipe(
    arm: str, task: str = "easy-vqa", direction: str = "smollm2-gemma", rate: float = 5e-3
) -> Recipe:
    """Return the recipe that ``run_direction`` gives an arm."""
    source_llm, target = DIRECTIONS[direction]
    place = Place(ROOT)
    return run.recipe(
        place,
        TASKS[task],
        f"{direction}-{arm}",
        place.run(task, f"tfs-{source_llm}") / "model",
        target,
        stages=run.port_stages(TASKS[task], 5e-3),
        export={"verify": arm == "ours"},
        **INITS[arm],
    )


@pytest.fixture
def ran(monkeypatch) -> list[tuple[str, Recipe]]:
    """Replace training by results; ``ours`` does best at 5e-3, ``random`` at 2e-2."""
    calls: list[tuple[str, Recipe]] = []

    def run_transfer(recipe: Recipe, folder: Path, progress) -> None:
        calls.append((folder.name, recipe))
        rate = recipe.stages[0].learning_rate
        arm = "random" if "random" in folder.name else "ours"
        loss = 0.4 + abs(rate - BEST[arm])
        losses = {"zero-step": 3.0} | {stage.name: loss for stage in recipe.stages}
        fake_result(recipe, folder, losses)

    monkeypatch.setattr(run, "run_transfer", run_transfer)
    return calls


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_arms_differ_in_the_projector_alone(task, direction):
    ours = arm_recipe("ours", task, direction)
    source_llm, target = DIRECTIONS[direction]
    assert ours.source.model.endswith(f"runs/{task}-tfs-{source_llm}/model")
    assert ours.target.model.endswith(run.LLMS[target])
    for arm in ("random", "paper"):
        keys = {key.split(":")[0] for key in differing_keys(arm_recipe(arm, task, direction), ours)}
        assert keys - {"name", "description", "export.verify"} <= {
            "init.projector",
            "init.calibration",
            "converter.method",
            "converter.pairs",
        }
    assert arm_recipe("random").init.projector == "random"
    assert arm_recipe("paper").converter.method == "cosine-sgd"


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_stages_train_what_they_say(task):
    warmup, finetune = arm_recipe("ours", task.name).stages
    assert warmup.parts == {"projector"}
    assert (warmup.schedule, warmup.max_steps, warmup.batch_size) == ("constant", task.warmup_steps, 32)
    assert finetune.parts == {"qformer", "query_tokens", "vision_norm", "projector"}
    assert (finetune.peak_learning_rate, finetune.min_learning_rate) == (5e-4, 5e-5)
    (alone,) = run.port_stages(task, 1e-3, warmup_alone=True)
    assert alone == run.port_stages(task, 1e-3)[0]


def test_every_arm_runs_once_in_order_and_sees_the_test_data_last(ran, tmp_path):
    place, task = Place(tmp_path), TASKS["emoji"]
    run.run_direction(place, task, "smollm2-gemma", QUIET)
    names = [name for name, _ in ran]
    assert names == [
        "emoji-tfs-smollm2",
        *(f"emoji-smollm2-gemma-{arm}-rate-{rate:g}" for arm in ("ours", "random") for rate in RATES[arm]),
        *(f"emoji-smollm2-gemma-{arm}" for arm in ("ours", "random", "paper")),
    ]
    recipes = dict(ran)
    assert {name for name, recipe in ran if recipe.data.test} == {names[0], *names[-3:]}
    chosen = {name.rsplit("-", 1)[1]: recipes[name].stages[0].learning_rate for name in names[-3:]}
    assert chosen == {"ours": 5e-3, "random": 2e-2, "paper": 5e-3}
    assert {name: recipes[name].export.verify for name in names[-3:]} == {
        "emoji-smollm2-gemma-ours": True,
        "emoji-smollm2-gemma-random": False,
        "emoji-smollm2-gemma-paper": False,
    }
    source = recipes["emoji-tfs-smollm2"]
    assert source.source.model == str(tmp_path / "sources" / "untrained")
    assert (source.init.projector, source.stages[0].name) == ("random", "scratch")
    assert {recipe.seed for _, recipe in ran} == {0}


def test_a_finished_arm_is_not_run_again(ran, tmp_path):
    place, task = Place(tmp_path), TASKS["easy-vqa"]
    run.run_direction(place, task, "gemma-smollm2", QUIET)
    first = len(ran)
    run.run_direction(place, task, "gemma-smollm2", QUIET)
    assert len(ran) == first == 10
    (place.run("easy-vqa", "gemma-smollm2-random") / "result.json").unlink()
    run.run_direction(place, task, "gemma-smollm2", QUIET)
    assert [name for name, _ in ran[first:]] == ["easy-vqa-gemma-smollm2-random"]


def test_an_arm_that_breaks_off_stops_the_run_and_is_taken_up_again(ran, tmp_path, monkeypatch):
    place, task, whole = Place(tmp_path), TASKS["easy-vqa"], run.run_transfer

    def breaks(recipe, folder, progress) -> None:
        if folder.name.endswith("random-rate-0.005"):
            raise KeyboardInterrupt
        whole(recipe, folder, progress)

    monkeypatch.setattr(run, "run_transfer", breaks)
    with pytest.raises(KeyboardInterrupt):
        run.run_direction(place, task, "smollm2-gemma", QUIET)
    assert len(ran) == 5
    monkeypatch.setattr(run, "run_transfer", whole)
    run.run_direction(place, task, "smollm2-gemma", QUIET)
    assert ran[5][0] == "easy-vqa-smollm2-gemma-random-rate-0.005"
    assert len({name for name, _ in ran}) == len(ran) == 10


def test_the_rate_is_chosen_by_the_last_validation_loss(tmp_path, monkeypatch):
    """The training loss and the first validation loss point elsewhere."""

    def run_transfer(recipe, folder, progress) -> None:
        rate = recipe.stages[0].learning_rate
        result = fake_result(
            recipe, folder, {"zero-step": 1.0, "warmup": {1e-3: 0.3, 5e-3: 0.7, 2e-2: 0.5}[rate]}
        )
        result["stages"][0]["validation"][0][2] = -rate
        (folder / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(run, "run_transfer", run_transfer)
    source = tmp_path / "source"
    assert run.best_rate(Place(tmp_path), TASKS["emoji"], "smollm2-gemma", "ours", source, QUIET) == 1e-3


def test_the_report_has_a_row_for_every_moment_that_saw_the_test_data(ran, tmp_path):
    place = Place(tmp_path)
    assert "###" not in run.report(place)
    run.run_direction(place, TASKS["emoji"], "smollm2-gemma", QUIET)
    (place.run("emoji", "half-done")).mkdir()
    lines = run.report(place).splitlines()
    assert lines[0] == "### emoji, test set `test-new-style`"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    head, *rows = rows
    assert tuple(head) == run.COLUMNS
    assert {len(row) for row in rows} == {len(head)}
    assert [row[:4] for row in rows] == [
        ["smollm2-gemma-ours", "zero-step", "0.005", "0"],
        ["smollm2-gemma-ours", "warmup", "0.005", "1,920"],
        ["smollm2-gemma-ours", "finetune", "0.005", "5,760"],
        ["smollm2-gemma-paper", "zero-step", "0.005", "0"],
        ["smollm2-gemma-paper", "warmup", "0.005", "1,920"],
        ["smollm2-gemma-paper", "finetune", "0.005", "5,760"],
        ["smollm2-gemma-random", "zero-step", "0.02", "0"],
        ["smollm2-gemma-random", "warmup", "0.02", "1,920"],
        ["smollm2-gemma-random", "finetune", "0.02", "5,760"],
        ["tfs-smollm2", "zero-step", "0.001", "0"],
        ["tfs-smollm2", "scratch", "0.001", "12,800"],
    ]
    assert rows[0][4:] == ["3.000", "50.0%", "0.250", "–", "–"]
    assert rows[1][4:] == ["0.400", "50.0%", "0.250", "12", "2000"]
    assert lines[-1].startswith("vpgtrans 0.")
    assert "transformers " in lines[-1]


def test_the_command_line_runs_one_direction_and_reports(ran, tmp_path, monkeypatch, capsys):
    words = ["run", "easy-vqa", "--root", str(tmp_path), "--direction", "gemma-smollm2"]
    monkeypatch.setattr(sys, "argv", words)
    run.main()
    assert {name.split("-")[2] for name, _ in ran} == {"tfs", "gemma"}
    printed = capsys.readouterr().out
    assert "### easy-vqa, test set `test`" in printed
    count = len(ran)
    monkeypatch.setattr(sys, "argv", ["run", "report", "--root", str(tmp_path)])
    run.main()
    assert capsys.readouterr().out == printed
    assert len(ran) == count


@pytest.mark.parametrize("words", [["all"], ["emoji"]])
def test_all_is_both_tasks_in_both_directions(ran, tmp_path, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["run", *words, "--root", str(tmp_path)])
    run.main()
    wanted = set(TASKS) if words == ["all"] else {"emoji"}
    assert {task for task in TASKS if any(name.startswith(task) for name, _ in ran)} == wanted
    assert len(ran) == 20 * len(wanted)


def test_new_concepts_are_measured_on_the_emoji_arms_that_are_done(ran, tmp_path, monkeypatch, capsys):
    run.run_direction(Place(tmp_path), TASKS["emoji"], "smollm2-gemma", QUIET)
    measured = []
    monkeypatch.setattr(run, "evaluate_new_concepts", lambda *given: measured.append(given))
    monkeypatch.setattr(sys, "argv", ["run", "new-concept", "--root", str(tmp_path)])
    run.main()
    ((data, runs, spec, _),) = measured
    assert data == tmp_path / "data" / "emoji"
    assert [folder.name.removeprefix("emoji-") for folder in runs] == [
        "smollm2-gemma-ours",
        "smollm2-gemma-paper",
        "smollm2-gemma-random",
        "tfs-smollm2",
    ]
    assert (spec.max_texts, spec.max_new_tokens) == (None, 12)
    assert "### emoji" in capsys.readouterr().out


def test_the_shipped_recipe_is_the_arm_of_the_real_run():
    shipped, arm = load_recipe("smollm2-to-gemma3"), arm_recipe("ours")
    keys = {key.split(":")[0] for key in differing_keys(shipped, arm)}
    assert keys == {"name", "description"}


def test_the_source_recipe_is_the_arm_of_the_real_run():
    """Both may share one run folder: a source trained by either is taken up by the other."""
    place, task = Place(ROOT), TASKS["easy-vqa"]
    arm = run.recipe(
        place,
        task,
        "tfs-smollm2",
        place.root / "sources" / "untrained",
        "smollm2",
        stages=run.scratch_stages(task),
        **INITS["random"],
    )
    file = Path(run.__file__).parent / "recipes" / "easy-vqa-tfs-smollm2.yaml"
    keys = {key.split(":")[0] for key in differing_keys(load_recipe(str(file)), arm)}
    assert keys <= {"description"}
