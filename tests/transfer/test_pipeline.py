"""The whole transfer on a tiny world: files, stock equality, frozen LLM, resume, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from tests.transfer.world import make_world
from vpgtrans.errors import DataError, PreflightError, RunFolderError
from vpgtrans.recipe import Recipe, load_recipe
from vpgtrans.transfer.align import convert, fuse
from vpgtrans.transfer.pipeline import TransferResult, run_one_stage, run_transfer

RUN_FILES = {
    "recipe.resolved.yaml", "plan.json", "converter.safetensors", "converter.json",
    "projector-init.safetensors", "projector-init.json", "metrics.jsonl", "result.json", "README.md",
    "plots/loss.png", "warmup/result.json", "warmup/final/trainable.safetensors",
    "warmup/final/state.json", "finetune/result.json", "finetune/final/trainable.safetensors",
    "finetune/final/state.json", "model/config.json", "model/model.safetensors.index.json",
    "model/tokenizer.json", "model/README.md", "evaluation/zero-step/samples.jsonl",
    "evaluation/warmup/samples.jsonl", "evaluation/finetune/samples.jsonl",
}  # fmt: skip


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def losses_of(folder: Path) -> list[tuple]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        (row["stage"], row["step"], row.get("loss"), row.get("validation_loss"), row.get("grad_norm"))
        for row in lines
    ]


def test_everything_promised_is_in_the_run_folder(finished: TransferResult) -> None:
    assert files_of(finished.folder) >= RUN_FILES
    assert not [name for name in files_of(finished.folder) if "tmp" in name or "partial" in name]


def test_the_result_measures_every_moment(finished: TransferResult) -> None:
    result = json.loads((finished.folder / "result.json").read_text())
    assert list(result["evaluations"]) == ["zero-step", "warmup", "finetune"]
    assert [stage["pairs"] for stage in result["stages"]] == [24, 24]
    for evaluation in result["evaluations"].values():
        assert evaluation["num_texts"] == 12
    last = result["stages"][-1]["validation"][-1][2]
    assert last == pytest.approx(result["evaluations"]["finetune"]["loss"], rel=1e-6)


def test_every_stage_lowers_the_held_out_loss(finished: TransferResult) -> None:
    losses = [evaluation["loss"] for evaluation in finished.evaluations.values()]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 1e-3
    assert (
        sum(stage == "warmup" and loss is not None for stage, _, loss, _, _ in losses_of(finished.folder))
        == 3
    )


def test_the_model_is_stock_and_its_llm_is_the_target_bit_by_bit(
    finished: TransferResult, world: Path
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(finished.model)
    target = AutoModelForCausalLM.from_pretrained(world.parent / "target")
    ported, own = model.language_model.state_dict(), target.state_dict()
    assert ported.keys() == own.keys()
    assert all(torch.equal(ported[name], own[name]) for name in own)
    trained = load_file(finished.folder / "finetune/final/trainable.safetensors")
    state = model.state_dict()
    assert {name.split(".")[0] for name in trained} == {
        "qformer",
        "query_tokens",
        "vision_model",
        "language_projection",
    }
    assert all(torch.equal(state[name], tensor) for name, tensor in trained.items())


def test_frozen_vision_encoder_is_the_sources(finished: TransferResult, world: Path) -> None:
    exported, source = weights_of(finished.model), weights_of(world.parent / "source")
    frozen = [n for n in source if n.startswith("vision_model.") and "post_layernorm" not in n]
    assert len(frozen) > 10
    assert all(torch.equal(exported[name], source[name]) for name in frozen)


def test_the_fusion_is_the_composition(finished: TransferResult, world: Path) -> None:
    converter = load_file(finished.folder / "converter.safetensors")
    facts = json.loads((finished.folder / "projector-init.json").read_text())
    source = weights_of(world.parent / "source")
    fused = converter["weight"].double() @ source["language_projection.weight"].double()
    init = load_file(finished.folder / "projector-init.safetensors")["weight"].double()
    scale = (init * fused).sum() / (fused * fused).sum()
    assert torch.allclose(init, scale * fused, atol=1e-6 * float(init.abs().max()))
    assert facts["layout"] in ("image-bos-text", "bos-image-text")


def test_the_processor_goes_with_the_model(finished: TransferResult) -> None:
    processor = AutoProcessor.from_pretrained(finished.model)
    assert (
        processor.tokenizer.convert_tokens_to_ids("<image>")
        == json.loads((finished.model / "config.json").read_text())["image_token_index"]
    )


def test_running_again_redoes_no_training(finished: TransferResult, world: Path) -> None:
    before = {name: (finished.folder / name).stat().st_mtime_ns for name in RUN_FILES if "/final/" in name}
    samples = (finished.folder / "evaluation/finetune/samples.jsonl").stat().st_mtime_ns
    again = run_transfer(load_recipe(str(world)), finished.folder)
    assert {name: (finished.folder / name).stat().st_mtime_ns for name in before} == before
    assert (finished.folder / "evaluation/finetune/samples.jsonl").stat().st_mtime_ns == samples
    assert again.evaluations == finished.evaluations


@pytest.mark.parametrize(("stage", "step"), [("warmup", 0), ("warmup", 2), ("finetune", 1)])
def test_a_killed_transfer_ends_bit_identical(
    finished: TransferResult,
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    step: int,
) -> None:
    from vpgtrans.data.steps import StepBatches

    recipe, real = load_recipe(str(world)), StepBatches.micro_batches

    def stop(self: StepBatches, number: int) -> list:
        is_stage = self.num_steps == 3 and (tmp_path / "run" / "warmup/result.json").exists() == (
            stage == "finetune"
        )
        if is_stage and number == step:
            raise KeyboardInterrupt
        return real(self, number)

    monkeypatch.setattr(StepBatches, "micro_batches", stop)
    with pytest.raises(KeyboardInterrupt):
        run_transfer(recipe, tmp_path / "run")
    assert not (tmp_path / "run/result.json").exists()
    monkeypatch.undo()
    run_transfer(recipe, tmp_path / "run")
    for name in ("warmup", "finetune"):
        ours, theirs = (
            load_file(root / name / "final/trainable.safetensors")
            for root in (tmp_path / "run", finished.folder)
        )
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses_of(tmp_path / "run") == losses_of(finished.folder)


def test_export_without_loading_the_llm_writes_the_same_weights(
    finished: TransferResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vpgtrans.vlm.llm
    from vpgtrans.transfer.standalone import export_run

    def refuse(*args: object) -> None:
        raise AssertionError("the LLM was loaded")

    monkeypatch.setattr(vpgtrans.vlm.llm, "load_llm", refuse)
    monkeypatch.setattr("vpgtrans.vlm.assemble.load_llm", refuse)
    export_run(finished.folder, tmp_path / "model", verify=False)
    ours, theirs = weights_of(tmp_path / "model"), weights_of(finished.model)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_an_unfinished_run_is_not_exported(finished: TransferResult, tmp_path: Path) -> None:
    from vpgtrans.transfer.standalone import export_run

    with pytest.raises(RunFolderError, match="is no run folder"):
        export_run(tmp_path, None)
    shutil.copytree(finished.folder, tmp_path / "run")
    (tmp_path / "run/finetune/result.json").unlink()
    with pytest.raises(RunFolderError, match="stage 'finetune' is not finished"):
        export_run(tmp_path / "run", None)


def test_evaluate_takes_the_prompt_of_the_run(finished: TransferResult, world: Path, tmp_path: Path) -> None:
    from vpgtrans.recipe import DataSource, Evaluation
    from vpgtrans.transfer.standalone import evaluate_model

    source = DataSource(path=str(world.parent / "test/data.jsonl"))
    facts = evaluate_model(str(finished.folder), source, Evaluation(max_new_tokens=4), tmp_path)
    assert facts["loss"] == pytest.approx(finished.evaluations["finetune"]["loss"], rel=1e-6)
    assert facts["template"] == "Question: {prompt} Answer: {answer}"
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12
    assert samples[0].keys() >= {"prompt", "answer", "generated", "references"}


def test_step_by_step_equals_transfer(finished: TransferResult, world: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(world))
    with pytest.raises(RunFolderError, match="vpgtrans fuse"):
        run_one_stage(recipe, tmp_path / "other", "warmup")
    convert(recipe, tmp_path / "run")
    fuse(recipe, tmp_path / "run")
    with pytest.raises(RunFolderError, match="stage 'warmup' has not been run"):
        run_one_stage(recipe, tmp_path / "run", "finetune")
    run_one_stage(recipe, tmp_path / "run", "warmup")
    run_one_stage(recipe, tmp_path / "run", "finetune")
    ours = load_file(tmp_path / "run/finetune/final/trainable.safetensors")
    theirs = load_file(finished.folder / "finetune/final/trainable.safetensors")
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def changed(recipe: Recipe, **sections: object) -> Recipe:
    return Recipe.model_validate({**recipe.model_dump(mode="json"), **sections})


def test_a_changed_recipe_is_refused_with_the_keys_that_differ(finished: TransferResult, world: Path) -> None:
    before = files_of(finished.folder)
    with pytest.raises(PreflightError, match=r"belongs to another recipe \(seed: 9 here, 3 there\)"):
        run_transfer(changed(load_recipe(str(world)), seed=9), finished.folder)
    assert files_of(finished.folder) == before


def test_a_foreign_folder_is_left_alone(world: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PreflightError, match=r"already holds other files \(thesis.txt\)"):
        run_transfer(load_recipe(str(world)), tmp_path)
    assert files_of(tmp_path) == {"thesis.txt"}


def test_unreadable_images_are_found_before_the_converter_is_fitted(world: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(world.parent / "train", data)
    (data / "3.png").write_bytes(b"not a picture")
    sets = [{"path": str(data / "data.jsonl")}]
    recipe = changed(load_recipe(str(world)), data={"train": sets})
    with pytest.raises(DataError, match=r"1 of 12"):
        run_transfer(recipe, tmp_path / "run")
    assert not (tmp_path / "run/converter.safetensors").exists()
    allowed = changed(recipe, data={"train": sets, "max_unreadable": 0.1}, stages=[])
    result = run_transfer(allowed, tmp_path / "other")
    assert result.model.is_dir()
    assert "3.png" in (tmp_path / "other/data/unreadable-train.json").read_text()


def test_a_converter_of_other_models_is_refused(
    finished: TransferResult, world: Path, tmp_path: Path
) -> None:
    recipe = load_recipe(str(world))
    for name in ("converter.safetensors", "converter.json"):
        shutil.copy(finished.folder / name, tmp_path / name)
    other = changed(recipe, converter={**recipe.converter.model_dump(mode="json"), "ridge": 0.5})
    with pytest.raises(RunFolderError, match=r"made from other settings \(converter differ\)"):
        convert(other, tmp_path)


@pytest.mark.parametrize("init", ["random", "captions", "converter+captions"])
def test_every_initialisation_runs(world: Path, tmp_path: Path, init: str) -> None:
    recipe = load_recipe(str(world), [f"init.projector={init}", "init.captions_images=12", "stages=[]"])
    if "converter" in init:
        convert(recipe, tmp_path / "run")
    facts = fuse(recipe, tmp_path / "run")
    weight = load_file(tmp_path / "run/projector-init.safetensors")["weight"]
    assert weight.shape == (48, 24)
    assert facts["init"] == init


def test_source_initialisation_needs_equal_widths(world: Path, tmp_path: Path) -> None:
    from vpgtrans.errors import ShapeError

    recipe = load_recipe(str(world), ["init.projector=source", "stages=[]"])
    with pytest.raises(ShapeError, match=r"32.*48"):
        fuse(recipe, tmp_path / "run")


@pytest.mark.parametrize(("llm", "kind"), [("t5", "unigram"), ("opt", "bpe")])
def test_other_llms_go_through_the_same_pipeline(tmp_path: Path, llm: str, kind: str) -> None:
    recipe = load_recipe(
        str(make_world(tmp_path / "w", target_llm=llm, kind=kind)),
        ["stages.warmup.epochs=0.4", "stages.finetune.max_steps=1", "data.test=[]", "data.validation=[]"],
    )
    result = run_transfer(recipe, tmp_path / "run")
    model = AutoModelForImageTextToText.from_pretrained(result.model)
    assert model.config.text_config.model_type == llm
    assert result.export["verified"]["as_loaded"]["equal_answers"] == 4
