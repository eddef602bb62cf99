"""Verification: a fresh stock process agrees with the run's model, and disagreement is an error."""

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.export.ports import Port, make_port, target_folder
from tests.export.test_hf import bf16_folder
from vpgtrans.data.records import Record, TextPair
from vpgtrans.errors import CheckpointError, DataError, VerificationError
from vpgtrans.export import stock_reader, verify
from vpgtrans.export.hf import export_hf
from vpgtrans.export.reference import own_answers
from vpgtrans.export.verify import Comparison, VerifyReport, verify_export
from vpgtrans.vlm.forward import Trainee

Pairs = list[tuple[Record, TextPair]]


def check(port: Port, folder: Path, pairs: Pairs, layout: str = "bos-image-text") -> VerifyReport:
    return verify_export(folder, Trainee(port.ported), port.encoder(layout), pairs, max_new_tokens=6)


def export(port: Port, folder: Path, layout: str = "bos-image-text", **options: Any) -> None:
    export_hf(port.ported, port.source, port.target, port.encoder(layout), folder, **options)


def test_float32_agrees_to_the_last_bit(gemma: Port, pairs: Pairs, tmp_path: Path) -> None:
    export(gemma, tmp_path / "model")
    report = check(gemma, tmp_path / "model", pairs)
    assert report.max_difference == 0
    assert report.as_trained == report.as_loaded
    assert report.as_loaded.equal_answers == report.num_samples == len(pairs)
    assert report.equal_prompts == report.prompts_compared == len(pairs)
    assert report.pixel_difference == 0
    assert report.as_loaded.max_logit > 0.1
    assert report.lines()[0] in (tmp_path / "model/README.md").read_text()
    assert json.loads(json.dumps(report.to_dict()))["max_difference"] == 0
    assert report.transformers in report.lines()[0]


def test_half_precision_agrees_as_trained_and_is_reported_as_loaded(
    root: Path, pairs: Pairs, tmp_path: Path
) -> None:
    port = make_port(root, bf16_folder(root), torch.bfloat16)
    assert port.ported.llm.dtype == torch.bfloat16
    export(port, tmp_path / "model", "image-bos-text")
    report = check(port, tmp_path / "model", pairs[:2], "image-bos-text")
    assert report.as_trained is not None
    assert report.as_trained.dtype == report.as_loaded.dtype == "bfloat16"
    assert report.as_trained.max_difference == 0
    assert report.as_trained.equal_answers == 2
    assert 0 < report.as_loaded.max_difference < 0.25 * report.as_loaded.max_logit
    assert len(report.lines()) == 2


def test_every_kind_of_damage_is_named(llama: Port, pairs: Pairs, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export(llama, folder, "image-bos-text")
    shard = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    tensors["language_projection.bias"][0] += 1.0
    save_file(tensors, shard, {"format": "pt"})
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["num_query_tokens"] = 3
    processor["image_processor"]["image_mean"] = [0.4, 0.4, 0.4]
    (folder / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(VerificationError) as caught:
        check(llama, folder, pairs[:2], "image-bos-text")
    message = str(caught.value)
    assert "pixels differ by up to" in message
    assert "other token ids for 2 of 2 prompts" in message
    assert "logits differ by up to" in message
    assert "Verified" not in (folder / "README.md").read_text()


def test_a_folder_that_does_not_load_is_an_error_in_words(llama: Port, pairs: Pairs, tmp_path: Path) -> None:
    export(llama, tmp_path / "model")
    (tmp_path / "model/model-00001-of-00002.safetensors").unlink()
    with pytest.raises(VerificationError, match="stock transformers cannot load the export: .*00001"):
        check(llama, tmp_path / "model", pairs[:1])


def report(**changes: Any) -> VerifyReport:
    same = Comparison("float32", 0.0, 20.0, 3)
    base = VerifyReport(3, same, same, 0.0, 3, 3, "5.23.0")
    return replace(base, **changes)


def found(dtype: str, difference: float, answers: int = 3) -> Comparison:
    return Comparison(dtype, difference, 20.0, answers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"as_loaded": found("float32", 2.1e-4)},
            "as from_pretrained loads it, logits differ by up to 0.00021",
        ),
        ({"as_trained": found("float32", 2.1e-4)}, "with the run's dtypes, logits differ"),
        ({"as_trained": found("float32", float("nan"))}, "logits differ by up to nan"),
        ({"as_loaded": found("bfloat16", float("inf"))}, "logits differ by up to inf"),
        ({"as_trained": found("bfloat16", 0.5)}, r"0.5 \(0.4 allowed\)"),
        ({"as_trained": found("float32", 0.0, 2)}, "1 of 3 greedy answers differ"),
        ({"equal_prompts": 1}, "other token ids for 2 of 3 prompts"),
        ({"pixel_difference": 1e-3}, "pixels differ by up to 0.001"),
        ({"pixel_difference": float("nan")}, "pixels differ"),
    ],
)
def test_what_is_an_error(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=message):
        verify._judge(report(**changes), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"as_trained": found("float32", 1.9e-4)},
        {"as_trained": found("bfloat16", 0.0), "as_loaded": found("bfloat16", 0.8, 1)},
        {"as_trained": None, "as_loaded": found("float16", 0.5, 0)},
        {"prompts_compared": 0, "equal_prompts": 0},
    ],
)
def test_what_is_no_error(changes: dict[str, Any], tmp_path: Path) -> None:
    verify._judge(report(**changes), tmp_path)


def test_a_nan_is_never_the_smaller_one() -> None:
    nan = float("nan")
    for values in ([0.0, nan], [nan, 0.0], [nan]):
        assert verify._largest(values) != verify._largest(values)
    assert verify._distance(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert verify._distance(torch.tensor([1.0, -3.0]), torch.tensor([1.0, 1.0])) == 4


def test_the_reader_knows_nothing_of_vpgtrans() -> None:
    tree = ast.parse(Path(stock_reader.__file__ or "").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert roots == {"PIL", "json", "pathlib", "safetensors", "sys", "torch", "transformers", "typing"}


def test_the_runs_answers_come_without_dropout_and_leave_modes_alone(root: Path, pairs: Pairs) -> None:
    port = make_port(root, target_folder(root, "opt"))
    trainee = Trainee(port.ported)
    encoder = port.encoder("image-bos-text")
    still = own_answers(trainee, encoder, pairs[:1], 4)[0]
    port.model.qformer.train()  # as after a stage that trains it: dropout 0.1
    modes = {name: module.training for name, module in port.model.named_modules()}
    again = own_answers(trainee, encoder, pairs[:1], 4)[0]
    assert torch.equal(again.logits_TV, still.logits_TV)
    assert {name: module.training for name, module in port.model.named_modules()} == modes


def test_bad_requests_are_refused(llama: Port, pairs: Pairs, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sample"):
        check(llama, tmp_path, [])
    with pytest.raises(CheckpointError, match="is no export"):
        check(llama, tmp_path, pairs)
