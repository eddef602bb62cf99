"""The house stays as drawn: sizes, docstrings, light imports, and documents that name real commands."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from vpgtrans.cli.app import app
from vpgtrans.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted((ROOT / "vpgtrans").rglob("*.py"))
LIGHT = ("cli", "transfer", "data", "weights", "recipe", "demo", "console.py", "errors.py", "progress.py")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_there_is_a_house() -> None:
    assert len(MODULES) > 60
    assert len(DOCUMENTS) >= 5


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_functions_are_small_and_documented(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert len(text.splitlines()) <= 300
    assert path.stem not in ("utils", "common", "base", "helpers")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{node.name} is too long"
            statements = [n for n in ast.walk(node) if isinstance(n, ast.stmt)]
            assert len(statements) <= 50, f"{node.name} does too much"


def test_light_packages_import_without_torch() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in MODULES
        if path.relative_to(ROOT / "vpgtrans").parts[0] in LIGHT
    ]
    assert len(names) > 30
    code = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "heavy = ('torch', 'transformers', 'datasets', 'matplotlib', 'accelerate')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def commands_in(text: str) -> list[list[str]]:
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.S)
    lines = [line.split("#")[0] for block in blocks for line in block.splitlines()]
    return [
        words[words.index("vpgtrans") :]
        for line in lines
        for words in [re.sub(r"&&", " ", line).split()]
        if "vpgtrans" in words
    ]


def test_documents_name_commands_and_options_that_exist() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    checked = 0
    for document in DOCUMENTS:
        for words in commands_in(document.read_text(encoding="utf-8")):
            if len(words) < 2 or words[1].startswith("-"):
                continue
            command = known.get(words[1])
            assert command is not None, f"{document.name}: vpgtrans {words[1]}"
            options = {
                name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)
            }
            unknown = [
                word for word in words[2:] if word.startswith("--") and word.split("=")[0] not in options
            ]
            assert not unknown, f"{document.name}: {' '.join(words)}"
            checked += 1
    assert checked > 10


def test_the_recipe_page_explains_every_section_and_key() -> None:
    page = (ROOT / "docs/RECIPES.md").read_text(encoding="utf-8")
    missing = [key for key in Recipe.model_fields if f"`{key}`" not in page]
    for section in ("data", "prompt", "converter", "init", "evaluation", "export", "features"):
        model = Recipe.model_fields[section].annotation
        missing += [f"{section}.{key}" for key in model.model_fields if f"`{key}`" not in page]  # type: ignore[union-attr]
    assert not missing


def test_no_machine_path_or_registry_host_is_committed() -> None:
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [
        name
        for name in tracked.stdout.split("\0")
        if name.endswith((".py", ".md", ".toml", ".yaml", ".txt", ".json"))
    ]
    assert len(names) > 100
    word = re.compile(
        "|".join(["/work" + "/", "/root" + "/", "pypi" + r"\.org", "npmjs" + r"\.", "pythonhost" + "ed"])
    )
    bad = [
        name
        for name in names
        if (ROOT / name).is_file() and word.search((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert not bad


def test_constraints_pin_what_the_project_needs() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    assert pins["torch"] == "2.13.0"
    assert {"transformers", "accelerate", "typer", "pydantic", "pytest", "ruff", "mypy"} <= pins.keys()


def test_every_recipe_file_is_plain_data() -> None:
    files = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        assert file.read_text().startswith("#"), f"{file.name} has no header"
        assert isinstance(yaml.safe_load(file.read_text()), dict)
