"""One stage from start to end: numbers, files, effective batches, and what must stay as it was."""

import json
import random
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from tests.training.toy import ToyBatches, toy_stage, toy_trainee, toy_validation, weights_of
from vpgtrans.errors import RecipeError, RunFolderError, TrainingError
from vpgtrans.training import StageResult, frozen_checksum, run_stage
from vpgtrans.training.metrics import read_metrics
from vpgtrans.training.randomness import random_state, restore_random_state
from vpgtrans.training.schedules import learning_rate


def train(trainee, folder, stage=None, batches=None, **extra):
    values = {"seed": 0, "fingerprint": "recipe-a", "validation": toy_validation(trainee)}
    return run_stage(trainee, stage or toy_stage(), batches or ToyBatches(8), folder, **{**values, **extra})


def test_result_files_and_lines(tmp_path):
    trainee = toy_trainee()
    before = weights_of(trainee)
    result = train(trainee, tmp_path / "warmup")
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == {
        "metrics.jsonl",
        "warmup/result.json",
        "warmup/checkpoint-6/trainable.safetensors",
        "warmup/checkpoint-6/optimizer.pt",
        "warmup/checkpoint-6/rng.pt",
        "warmup/checkpoint-6/state.json",
        "warmup/final/trainable.safetensors",
        "warmup/final/state.json",
    }
    lines = read_metrics(tmp_path / "metrics.jsonl")
    training = [line for line in lines if "loss" in line]
    validation = [line for line in lines if "validation_loss" in line]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert set(training[0]) == {
        "stage", "step", "pairs", "loss", "learning_rate", "grad_norm", "tokens", "seconds",
        "pairs_per_second",
    }  # fmt: skip
    assert [set(line) for line in validation] == [{"stage", "step", "pairs", "validation_loss"}] * 3
    assert [(line["step"], line["pairs"]) for line in validation] == [(0, 0), (4, 32), (8, 64)]
    assert [line["learning_rate"]["projector"] for line in training] == pytest.approx(
        [learning_rate(toy_stage(), step, 8) for step in range(8)]
    )
    assert (result.steps, result.pairs, result.tokens) == (8, 64, sum(line["tokens"] for line in training))
    assert (result.first_loss, result.last_loss) == (training[0]["loss"], training[-1]["loss"])
    assert result.validation == [(v["step"], v["pairs"], v["validation_loss"]) for v in validation]
    assert result.loss_after < result.loss_before
    moved = {name for name, tensor in weights_of(trainee).items() if not torch.equal(tensor, before[name])}
    assert moved == {
        name for part in ("qformer", "query_tokens", "projector") for name in trainee.parts[part]
    }


def test_module_ends_frozen_in_eval_mode_with_random_states_as_before(tmp_path):
    trainee = toy_trainee()

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), torch.rand(1).item()  # noqa: NPY002

    before = random_state()
    expected = draw()
    restore_random_state(before)
    train(trainee, tmp_path / "warmup")
    assert draw() == expected
    assert not any(p.requires_grad for p in trainee.module.parameters())
    assert not any(child.training for child in trainee.module.modules())


def test_seed_and_stage_name_decide_the_dropout_and_the_callers_state_does_not(tmp_path):
    def final(folder, **extra):
        trainee = toy_trainee()
        stage = toy_stage(extra.pop("name", "warmup"))
        train(trainee, tmp_path / folder / stage.name, stage, **extra)
        return weights_of(trainee)["projector.weight"]

    torch.manual_seed(1)
    first = final("a")
    torch.manual_seed(2)
    assert torch.equal(first, final("b"))
    assert not torch.equal(first, final("c", seed=1))
    assert not torch.equal(first, final("d", name="finetune"))


def test_validation_does_not_change_the_training(tmp_path):
    with_it, without = toy_trainee(), toy_trainee()
    measure = toy_validation(with_it)

    def noisy() -> float:
        assert not torch.is_grad_enabled()
        assert not any(child.training for child in with_it.module.modules())
        torch.rand(100)
        return measure()

    train(with_it, tmp_path / "a" / "warmup", validation=noisy)
    train(without, tmp_path / "b" / "warmup", validation=None)
    for name, tensor in weights_of(without).items():
        assert torch.equal(tensor, weights_of(with_it)[name]), name


def test_dropout_works_in_trained_parts_at_every_step_and_nowhere_else(tmp_path):
    seen = []

    def look(trainee):
        seen.append({name for name, child in trainee.module.named_modules() if child.training})
        trainee.module.train()  # whoever does this inside a step must not spoil the next

    trainee = toy_trainee()
    trainee.before_loss = look
    train(trainee, tmp_path / "warmup", validation=None)
    trained = {"projector", "qformer", "qformer.0", "qformer.1", "qformer.2", "qformer.3"}
    assert seen == [trained] * 8


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_micro_batches_equal_one_big_batch(tmp_path, micro):
    """Mean over all supervised tokens: texts of different lengths, uneven last micro-batch."""
    big, small = (toy_trainee(dropout=0.0, dtype=torch.float64) for _ in range(2))
    stage = toy_stage(max_grad_norm=0.05)
    train(big, tmp_path / "big" / "warmup", stage, ToyBatches(8, dtype=torch.float64), validation=None)
    train(
        small,
        tmp_path / "small" / "warmup",
        stage,
        ToyBatches(8, micro=micro, dtype=torch.float64),
        validation=None,
    )
    for name, tensor in weights_of(big).items():
        torch.testing.assert_close(weights_of(small)[name], tensor, rtol=0, atol=1e-12)
    lines = [read_metrics(tmp_path / arm / "metrics.jsonl") for arm in ("big", "small")]
    for one, other in zip(*lines, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-13)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-12)
        assert (one["tokens"], one["pairs"]) == (other["tokens"], other["pairs"])


def test_first_line_is_the_mean_token_loss_and_its_gradient_norm(tmp_path):
    trainee = toy_trainee(dropout=0.0, dtype=torch.float64)
    batch = ToyBatches(8, dtype=torch.float64).micro_batches(0)[0]
    names = [name for part in ("qformer", "query_tokens", "projector") for name in trainee.parts[part]]
    parameters = [dict(trainee.module.named_parameters())[name] for name in names]
    logits = trainee.module(batch.images)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).norm()
    train(trainee, tmp_path / "warmup", None, ToyBatches(8, dtype=torch.float64), validation=None)
    line = read_metrics(tmp_path / "metrics.jsonl")[0]
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-14)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-12)


def test_finished_stage_is_not_redone_and_gives_its_weights(tmp_path):
    first = toy_trainee()
    result = train(first, tmp_path / "warmup")
    metrics = (tmp_path / "metrics.jsonl").read_text()
    again = toy_trainee()

    def never(step):
        raise AssertionError(f"asked for step {step} of a finished stage")

    assert train(again, tmp_path / "warmup", batches=ToyBatches(8, before=never)) == result
    assert again.calls == 0
    assert (tmp_path / "metrics.jsonl").read_text() == metrics
    for name, tensor in weights_of(first).items():
        assert torch.equal(tensor, weights_of(again)[name])
    assert not any(p.requires_grad for p in again.module.parameters())


def test_finished_stage_in_a_moved_run_folder_points_to_its_new_place(tmp_path):
    train(toy_trainee(), tmp_path / "old" / "warmup")
    (tmp_path / "old").rename(tmp_path / "new")
    result = train(toy_trainee(), tmp_path / "new" / "warmup")
    assert result.checkpoint == tmp_path / "new" / "warmup" / "final"


def test_finished_stage_of_another_recipe_is_refused(tmp_path):
    train(toy_trainee(), tmp_path / "warmup")
    with pytest.raises(RunFolderError, match="finished stage of another recipe"):
        train(toy_trainee(), tmp_path / "warmup", fingerprint="recipe-b")


def test_start_checksum_is_used_and_checked(tmp_path):
    trainee = toy_trainee()
    names = {name for part in ("qformer", "query_tokens", "projector") for name in trainee.parts[part]}
    known = frozen_checksum(trainee.module, names)
    train(trainee, tmp_path / "right" / "warmup", start_checksum=known)
    with pytest.raises(TrainingError, match="frozen weights changed during training"):
        train(toy_trainee(), tmp_path / "wrong" / "warmup", start_checksum="0" * 64)
    assert not (tmp_path / "wrong" / "warmup" / "final").exists()


def test_unknown_part_and_contradicting_rates_leave_no_files(tmp_path):
    trainee = toy_trainee()
    del trainee.parts["vision_norm"]
    with pytest.raises(RecipeError, match="no part 'vision_norm'"):
        train(trainee, tmp_path / "run" / "warmup", toy_stage(train=("vpg",)))
    with pytest.raises(RecipeError, match="min_learning_rate"):
        train(trainee, tmp_path / "run" / "warmup", toy_stage(min_learning_rate=1.0))
    assert not (tmp_path / "run").exists()


def test_default_is_ten_validations_and_the_last_checkpoint(tmp_path):
    trainee = toy_trainee()
    stage = toy_stage(max_steps=25, save_steps=None, eval_steps=None, save_total_limit=2)
    result = train(trainee, tmp_path / "warmup", stage, ToyBatches(25))
    assert [step for step, _, _ in result.validation] == [0, 3, 6, 9, 12, 15, 18, 21, 24, 25]
    assert sorted(p.name for p in (tmp_path / "warmup").glob("checkpoint-*")) == [
        "checkpoint-21",
        "checkpoint-24",
    ]


def test_progress_counts_pairs_and_shows_the_loss(tmp_path):
    class Recorder:
        def __init__(self):
            self.tasks, self.notes, self.advanced, self.shown = [], [], 0, []

        @contextmanager
        def task(self, title, total=None, unit="it"):
            self.tasks.append((title, total, unit))
            yield self

        def note(self, text):
            self.notes.append(text)

        def advance(self, amount=1):
            self.advanced += amount

        def show(self, **values):
            self.shown.append(values["loss"])

    recorder = Recorder()
    result = train(toy_trainee(), tmp_path / "warmup", progress=recorder)
    checksum = ("warmup: checksum of the frozen weights", None, "it")
    training = ("warmup: training projector, qformer, query_tokens", 64, "pairs")
    assert recorder.tasks == [checksum, training, checksum]
    assert recorder.advanced == 64
    assert recorder.shown[-1] == result.last_loss
    train(toy_trainee(), tmp_path / "warmup", progress=recorder)
    assert recorder.notes == ["warmup: already trained (8 steps), nothing to do"]


def test_result_survives_json(tmp_path):
    result = train(toy_trainee(), tmp_path / "warmup")
    assert StageResult.from_json(result.to_json()) == result
    assert json.loads((tmp_path / "warmup" / "result.json").read_text()) == json.loads(result.to_json())
    assert result.peak_memory_mb > 50
    assert [row.part for row in result.trained if row.trainable] == ["query_tokens", "qformer", "projector"]


def test_without_validation_the_training_losses_stand_for_before_and_after(tmp_path):
    result = train(toy_trainee(), tmp_path / "warmup", validation=None)
    assert result.validation == []
    assert (result.loss_before, result.loss_after) == (result.first_loss, result.last_loss)
