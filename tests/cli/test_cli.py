"""The command line: exit codes, one-line errors, JSON alone on standard output, no torch for help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.tiny import save_tiny_blip2, save_tiny_llm
from tests.transfer.world import make_world, recipe_tree
from vpgtrans.cli.app import main
from vpgtrans.recipe import shipped_recipes

COMMANDS = (
    "demo", "inspect", "transfer", "convert", "fuse", "warmup", "finetune", "evaluate", "export",
    "preview-data", "recipes", "env", "estimate",
)  # fmt: skip


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object
) -> tuple[int, str, str]:
    """Run the real entry point in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["vpgtrans", *(str(word) for word in words)])
    monkeypatch.setenv("COLUMNS", "200")
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def cli(capsys, monkeypatch):
    return lambda *words: run(capsys, monkeypatch, *words)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return save_tiny_blip2(root / "vlm"), save_tiny_llm(root / "llm", "gemma3_text", "unigram", hidden=48)


def test_help_of_everything_imports_no_torch() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from vpgtrans.cli.app import app\n"
        "runner = CliRunner()\n"
        "names = [[]] + [[n] for n in sys.argv[1:]]\n"
        "bad = [n for n in names if runner.invoke(app, [*n, '--help']).exit_code != 0]\n"
        "libraries = ('torch', 'transformers', 'datasets', 'matplotlib', 'accelerate')\n"
        "heavy = [name for name in libraries if name in sys.modules]\n"
        "print(bad, heavy)"
    )
    out = subprocess.run([sys.executable, "-c", code, *COMMANDS], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[] []"


def test_wrong_usage_is_two_and_our_error_is_one(cli) -> None:
    assert cli("transfer")[0] == 2
    assert cli("nosuch")[0] == 2
    code, out, err = cli("transfer", "no-such-recipe", "--out", "x")
    assert (code, out) == (1, "")
    assert err.startswith("error: no recipe file 'no-such-recipe'")
    assert "Traceback" not in err


def test_recipes_list_show_copy(cli, tmp_path: Path) -> None:
    code, out, _ = cli("recipes", "list", "--json")
    assert code == 0
    assert {row["name"] for row in json.loads(out)} == set(shipped_recipes())
    code, out, _ = cli("recipes", "show", "vl-llama-7b")
    assert out.rstrip("\n") == shipped_recipes()["vl-llama-7b"].read_text().rstrip("\n")
    mine = tmp_path / "mine.yaml"
    assert cli("recipes", "copy", "vl-llama-7b", mine)[0] == 0
    assert mine.read_text() == shipped_recipes()["vl-llama-7b"].read_text()
    mine.write_text("kept")
    code, _, err = cli("recipes", "copy", "vl-llama-7b", mine)
    assert code == 1
    assert "not written over" in err
    assert mine.read_text() == "kept"


def test_env_is_json(cli) -> None:
    code, out, _ = cli("env", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["transformers"][0].isdigit()
    assert set(facts) >= {"vpgtrans", "python", "torch", "memory", "gpu"}


def test_inspect_shows_parts_and_plan(cli, models: tuple[Path, Path]) -> None:
    code, out, _ = cli("inspect", models[0], "--target", models[1], "--json")
    report = json.loads(out)
    assert code == 0
    parts = {part["name"]: part for part in report["model"]["parts"]}
    assert parts["projector"]["parameters"] == 24 * 32 + 32
    assert parts["query tokens"]["parameters"] == 4 * 24
    assert report["plan"]["blockers"] == []
    code, out, _ = cli("inspect", models[0], "--target", models[1])
    assert code == 0
    assert "Nothing blocks this port." in out


def test_convert_and_fuse_each_read_the_step_before(cli, models: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, llm = models
    pair = ("--source", vlm, "--target", llm)
    code, _, err = cli(
        "fuse",
        *pair,
        "--calibration",
        "none",
        "--set",
        "prompt.layout=image-bos-text",
        "--out",
        tmp_path / "run",
    )
    assert code == 1
    assert "vpgtrans convert" in err
    code, out, _ = cli(
        "convert", *pair, "--set", "converter.min_anchors=10", "--out", tmp_path / "run", "--json"
    )
    assert code == 0
    assert json.loads(out)["method"] == "ridge"
    code, out, err = cli(
        "fuse", *pair, "--calibration", "none", "--set", "prompt.layout=image-bos-text",
        "--set", "converter.min_anchors=10", "--out", tmp_path / "run",
    )  # fmt: skip
    assert code == 0, err
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == {
        "converter.safetensors",
        "converter.json",
        "projector-init.safetensors",
        "projector-init.json",
    }


def test_bad_input_is_one_line_and_writes_nothing(cli, models: tuple[Path, Path], tmp_path: Path) -> None:
    vlm, llm = models
    cases = {
        ("--source", llm, "--target", llm): "VLM",
        ("--source", vlm, "--target", vlm): "LLM",
        ("--source", tmp_path / "none", "--target", llm): "none",
        ("--source", vlm, "--target", llm, "--method", "identity"): "32",
        ("--source", vlm, "--target", llm, "--set", "converter.min_anchors=100000"): "100000",
        ("--source", vlm): "--target",
    }
    for words, expected in list(cases.items())[1:]:
        out_folder = tmp_path / "out"
        code, out, err = cli("convert", *words, "--out", out_folder)
        if words == ("--source", vlm, "--target", vlm):
            continue  # convert reads the table of a VLM's LLM as well
        assert (code, out) == (1, ""), (words, err)
        assert err.startswith("error: ")
        assert expected in err
        assert len(err.strip().splitlines()) == 1
        assert not (out_folder / "converter.safetensors").exists()
    code, _, err = cli("fuse", "--source", llm, "--target", llm, "--init", "random", "--out", tmp_path / "f")
    assert code == 1
    assert "VLM" in err


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("cli"))


def with_changes(world: Path, name: str, **changes: object) -> Path:
    root = world.parent
    tree = recipe_tree(root / "source", root / "target", root / "train/data.jsonl", root / "test/data.jsonl")
    tree.update(changes)
    file = root / f"{name}.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def test_preflight_collects_every_problem_before_anything_starts(cli, world: Path) -> None:
    broken = with_changes(
        world,
        "broken",
        target={"model": str(world.parent / "nowhere")},
        data={"train": [{"path": str(world.parent / "missing.jsonl")}]},
    )
    code, out, err = cli("transfer", broken, "--out", world.parent / "run-broken")
    assert (code, out) == (1, "")
    assert "2 problems found before starting" in err
    assert "nowhere" in err
    assert "missing.jsonl" in err
    assert not (world.parent / "run-broken").exists()


def test_missing_images_are_counted_and_named(cli, world: Path) -> None:
    rows = [json.dumps({"image": f"gone-{n}.png", "question": "q", "answer": "a"}) for n in range(7)]
    file = world.parent / "gone.jsonl"
    file.write_text("\n".join(rows))
    code, _, err = cli(
        "transfer",
        with_changes(world, "gone", data={"train": [{"path": str(file)}]}),
        "--out",
        world.parent / "g",
    )
    assert code == 1
    assert "7" in err
    assert "gone-4.png" in err
    assert "gone-5.png" not in err


def test_dry_run_plans_and_trains_nothing(cli, world: Path) -> None:
    folder = world.parent / "dry"
    code, out, err = cli("transfer", world, "--out", folder, "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0, err
    assert plan["data"]["data.train.0"] == {"images": 12, "texts": 24}
    assert {path.name for path in folder.iterdir()} == {"recipe.resolved.yaml", "plan.json"}


def test_preview_data_shows_what_carries_loss(cli, world: Path) -> None:
    code, out, err = cli("preview-data", world, "--samples", 2, "--json")
    assert code == 0, err
    first = json.loads(out)[0]
    assert first["num_image"] == 4
    supervised = "".join(token["text"] for token in first["tokens"] if token["role"] == "supervised")
    assert "red" in supervised
    assert "Question" not in supervised
    code, out, _ = cli("preview-data", world, "--samples", 1)
    assert code == 0
    assert "carry loss" in out


def test_evaluate_measures_a_stock_folder_and_saves_the_answers(
    cli, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = world.parent / "test/data.jsonl"
    code, out, err = cli(
        "evaluate", world.parent / "source", "--data", data, "--template", "{prompt} {answer}",
        "--layout", "image-bos-text", "--max-texts", 4, "--max-new-tokens", 3, "--json",
    )  # fmt: skip
    facts = json.loads(out)
    assert code == 0, err
    assert facts["num_texts"] == 4
    assert facts["loss"] > 0
    samples = Path(facts["samples"]).read_text().splitlines()
    assert len(samples) == 4
    code, out, err = cli("evaluate", world.parent / "target", "--data", data)
    assert (code, out) == (1, "")
    assert "VLM" in err


def test_a_full_disk_is_said_before_training(cli, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 5000, 5000))
    code, out, err = cli("transfer", world, "--out", world.parent / "full")
    assert (code, out) == (1, "")
    assert "the exported model" in err
    assert not (world.parent / "full").exists()


def test_a_corrupt_shard_is_said_with_both_sizes(cli, world: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(world.parent / "target", tmp_path / "target")
    shard = tmp_path / "target/model.safetensors"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, err = cli(
        "transfer",
        with_changes(world, "cut", target={"model": str(tmp_path / "target")}),
        "--out",
        tmp_path / "r",
    )
    assert (code, out) == (1, "")
    assert "model.safetensors" in err
    assert f"{size:,}" in err or str(size) in err
    assert f"{size - 100:,}" in err or str(size - 100) in err
    assert not (tmp_path / "r").exists()


def test_a_text_without_supervised_tokens_is_found_before_training(cli, world: Path, tmp_path: Path) -> None:
    rows = (world.parent / "train/data.jsonl").read_text().splitlines()
    long = json.dumps({"image": "0.png", "question": "what " * 200, "answer": "red"})
    data = world.parent / "train/long.jsonl"
    data.write_text("\n".join([*rows, long]))
    code, out, err = cli(
        "transfer",
        with_changes(world, "long", data={"train": [{"path": str(data)}]}),
        "--out",
        tmp_path / "r",
    )
    assert (code, out) == (1, "")
    assert "1 of 25 texts cannot be trained on" in err
    assert not (tmp_path / "r").exists()
