"""The one training loop. A stage is data; warm-up and fine-tuning are two values, not two scripts.

The order inside a stage is fixed, so that it can be cut anywhere and go on as if nothing happened::

    [validation at 0] -> step 1 -> [validation at 1] -> [checkpoint 1] -> step 2 -> ... -> final/

Everything a step needs is a function of the step (batches, learning rate) or is in a checkpoint
(trained weights, moments, random states).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from vpgtrans.errors import RunFolderError, TrainingError
from vpgtrans.progress import SILENT, Progress, Task
from vpgtrans.recipe import Stage
from vpgtrans.training import checkpoints, guards, processes
from vpgtrans.training.checkpoints import FINAL, Checkpoint, Identity, StageState
from vpgtrans.training.metrics import METRICS_FILE, MetricsLog
from vpgtrans.training.optimizer import make_optimizer, peak_rates, set_learning_rates
from vpgtrans.training.protocols import BatchSource, Trainable, TrainingBatch
from vpgtrans.training.randomness import (
    RandomState,
    preserved_random_state,
    random_state,
    restore_random_state,
    seed_everything,
    stage_seed,
)
from vpgtrans.training.results import StageResult, load_result, peak_memory_mb
from vpgtrans.training.schedules import check_rates
from vpgtrans.training.trainable import Modes, PartRow, current_modes, freeze, set_trainable, trained_names

__all__ = ["BatchSource", "Trainable", "TrainingBatch", "run_stage"]


def run_stage(
    trainee: Trainable,
    stage: Stage,
    batches: BatchSource,
    folder: Path,
    *,
    seed: int,
    fingerprint: str,
    validation: Callable[[], float] | None = None,
    report_to: Sequence[str] = (),
    progress: Progress = SILENT,
    start_checksum: str | None = None,
) -> StageResult:
    """Train one stage, or go on with it, or give back the result of a finished one.

    The module ends frozen, in eval mode, with the stage's final weights in it. Python's, NumPy's and
    torch's random states are those from before the call.

    Args:
        trainee: model, parts and loss.
        stage: what is trained, how long, at which rate.
        batches: the pairs of every step.
        folder: ``RUN/<stage name>``; ``metrics.jsonl`` is written beside it, into ``RUN``.
        seed: with the stage's name it seeds dropout.
        fingerprint: of everything that shapes the stage; a folder with another one is refused.
        validation: returns the held-out loss; called in eval mode without gradients, at step 0, every
            ``eval_steps`` and at the end.
        report_to: trackers besides ``metrics.jsonl``: tensorboard, wandb, trackio.
        progress: where the bar goes.
        start_checksum: ``frozen_checksum`` of the module for this stage, if the caller knows it.

    Raises:
        RecipeError: unknown part, rates that contradict each other, tracker not installed.
        RunFolderError: the folder belongs to another recipe.
        TrainingError: NaN, INF or zero gradients, or frozen weights that changed.
    """
    check_rates(stage)
    accelerator = processes.start_accelerator(report_to, folder.parent)
    names = trained_names(trainee.module, trainee.parts, stage.parts)
    trainee.module.to(accelerator.device)
    finished = load_result(folder, fingerprint)
    final = checkpoints.open_checkpoint(folder / FINAL) if finished else None
    if finished and final:
        final.load_weights(trainee.module, names)
        freeze(trainee.module)
        progress.note(f"{stage.name}: already trained, {finished.steps} steps")
        return finished
    folder.mkdir(parents=True, exist_ok=True)
    with preserved_random_state():
        try:
            run = _prepare(
                accelerator, trainee, stage, batches, folder, names, seed, fingerprint, start_checksum
            )
            run.validation, run.progress = validation, progress
            return _run(run, report_to)
        finally:
            freeze(trainee.module)


@dataclass
class _Run:
    """One stage under way."""

    accelerator: Accelerator
    trainee: Trainable
    stage: Stage
    batches: BatchSource
    folder: Path
    names: frozenset[str]
    identity: Identity
    state: StageState
    optimizer: torch.optim.AdamW
    modes: Modes
    rows: list[PartRow]
    log: MetricsLog
    last: Checkpoint | None
    random: RandomState
    """The random states after the last whole step."""
    validation: Callable[[], float] | None = None
    progress: Progress = SILENT
    whole: bool = True
    """False while a step changes weights, counts and metrics: no checkpoint may be written then."""
    started: float = field(default_factory=time.monotonic)
    seconds_before: float = 0.0

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters, in the optimizer's order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def elapsed(self) -> float:
        """Return the seconds of all sessions so far."""
        return self.seconds_before + time.monotonic() - self.started


def _prepare(
    accelerator: Accelerator,
    trainee: Trainable,
    stage: Stage,
    batches: BatchSource,
    folder: Path,
    names: frozenset[str],
    seed: int,
    fingerprint: str,
    start_checksum: str | None,
) -> _Run:
    """Set the module up, and load the newest checkpoint if there is one."""
    module = trainee.module
    guards.check_precision(module, names)
    rows = set_trainable(module, trainee.parts, stage.parts, peak_rates(stage))
    frozen = start_checksum or guards.frozen_checksum(module, names)
    optimizer = make_optimizer(module, trainee.parts, stage)
    seed_everything(stage_seed(seed, stage.name, accelerator.process_index))
    last = checkpoints.newest_checkpoint(folder, fingerprint)
    if last:
        _resume(last, module, names, optimizer, frozen, accelerator.process_index)
    state = last.state if last else StageState()
    log = MetricsLog(folder.parent / METRICS_FILE, stage.name, accelerator.is_main_process)
    log.cut_back(state.step, {step for step, _, _ in state.validation})
    return _Run(
        accelerator=accelerator,
        trainee=trainee,
        stage=stage,
        batches=batches,
        folder=folder,
        names=names,
        identity=Identity(stage.name, fingerprint, seed, frozen),
        state=state,
        optimizer=optimizer,
        modes=current_modes(module),
        rows=rows,
        log=log,
        last=last,
        random=random_state(),
        seconds_before=state.seconds,
    )


def _resume(
    last: Checkpoint,
    module: torch.nn.Module,
    names: frozenset[str],
    optimizer: torch.optim.Optimizer,
    frozen: str,
    process: int,
) -> None:
    if last.identity.frozen != frozen:
        raise RunFolderError(
            f"{last.folder} was trained over other frozen weights (sha256 {last.identity.frozen[:12]}, "
            f"now {frozen[:12]}); choose another output folder or delete this one"
        )
    last.load_weights(module, names)
    last.load_optimizer(optimizer)
    state = last.random_state(process)
    if state is not None:
        restore_random_state(state)


def _run(run: _Run, report_to: Sequence[str]) -> StageResult:
    run.log.trackers = processes.start_trackers(run.accelerator, report_to, run.stage)
    total = (run.batches.num_steps - run.state.step) * run.stage.batch_size
    title = f"{run.stage.name}: training {', '.join(sorted(run.stage.parts))}"
    if run.state.step:
        title += f" (from step {run.state.step})"
    try:
        with run.progress.task(title, total=total, unit="pairs") as task:
            _steps(run, task)
    except KeyboardInterrupt:
        # processes stand at different places then, and writing together would hang
        if run.whole and run.state.step and run.accelerator.num_processes == 1:
            _save(run)
        raise
    finally:
        for tracker in run.log.trackers:
            tracker.finish()
    return _finish(run)


def _steps(run: _Run, task: Task) -> None:
    """Alternate steps, validations and checkpoints up to the last step."""
    num_steps = run.batches.num_steps
    every = max(1, -(-num_steps // 10))
    eval_steps, save_steps = run.stage.eval_steps or every, run.stage.save_steps or every
    while True:
        step = run.state.step
        if (step % eval_steps == 0 or step == num_steps) and not run.state.validated(step):
            _validate(run)
        if step and step % save_steps == 0:
            _save(run)
        if step >= num_steps:
            return
        _step(run, task)


def _step(run: _Run, task: Task) -> None:
    """Take one optimizer step over an effective batch."""
    state, began = run.state, time.monotonic()
    run.modes.apply()
    run.optimizer.zero_grad(set_to_none=True)
    rates = set_learning_rates(run.optimizer, run.stage, state.step, run.batches.num_steps)
    measured, pair_ids = _gradients(run)
    place = guards.Place(run.folder, run.stage.name, state.step + 1, run.last.folder if run.last else None)
    guards.check_step(measured, place, pair_ids)
    if state.first_loss is None:
        guards.check_gradients_reach(run.trainee.module, run.trainee.parts, run.stage.parts, place)
    run.whole = False
    run.optimizer.step()
    state.step += 1
    state.pairs += measured.pairs
    state.tokens += measured.tokens
    state.first_loss = measured.loss if state.first_loss is None else state.first_loss
    state.last_loss = measured.loss
    run.random = random_state()
    run.log.add(
        state.step,
        state.pairs,
        loss=measured.loss,
        learning_rate=rates,
        grad_norm=measured.grad_norm,
        tokens=measured.tokens,
        seconds=round(run.elapsed(), 3),
        pairs_per_second=round(measured.pairs / max(1e-9, time.monotonic() - began), 3),
    )
    run.whole = True
    task.advance(measured.pairs)
    task.show(loss=measured.loss)


def _gradients(run: _Run) -> tuple[guards.Measured, list[str]]:
    """Leave the gradient of the mean token loss of the effective batch in the parameters, clipped.

    Micro-batches add up the gradients of their loss SUMS, which are then divided by the number of all
    supervised tokens: exactly one big batch, however the texts' lengths differ.
    """
    micro_batches = run.batches.micro_batches(run.state.step)
    losses: list[torch.Tensor] = []
    tokens = 0
    for batch in processes.own_share(run.accelerator, micro_batches):
        loss, count = run.trainee.loss(batch.to(run.accelerator.device))
        run.accelerator.backward(loss)
        losses.append(loss.detach().double())
        tokens += count
    loss_sum = float(torch.stack(losses).sum()) if losses else 0.0
    processes.sum_gradients(run.accelerator, run.parameters)
    loss_sum, total = processes.sum_counts(run.accelerator, [loss_sum, tokens])
    gradients = [p.grad for p in run.parameters if p.grad is not None]
    norm = guards.scale_and_clip(gradients, max(1.0, total), run.stage.max_grad_norm)
    pair_ids = [pair_id for batch in micro_batches for pair_id in batch.pair_ids]
    measured = guards.Measured(loss_sum / max(1.0, total), norm, int(total), len(pair_ids))
    return measured, pair_ids


def _validate(run: _Run) -> None:
    """Measure the held-out loss, without touching modes, gradients or random states of the training."""
    if run.validation is None:
        return
    run.trainee.module.eval()
    with preserved_random_state(), torch.no_grad():
        loss = float(run.validation())
    state = run.state
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise TrainingError(
            f"stage '{run.stage.name}': the validation loss is {loss} at step {state.step}; last good "
            f"checkpoint: {run.last.folder if run.last else 'none yet'}"
        )
    run.whole = False
    run.log.add(state.step, state.pairs, validation_loss=loss)
    state.validation.append((state.step, state.pairs, loss))
    run.whole = True


def _save(run: _Run) -> None:
    """Write a checkpoint of the last whole step, then remove the ones it replaces."""
    target = checkpoints.checkpoint_path(run.folder, run.state.step)
    if run.last and run.last.folder == target:
        return
    random_states = processes.gather_list(run.accelerator, [run.random])
    run.state.seconds = run.elapsed()
    if run.accelerator.is_main_process:
        weights = checkpoints.trained_weights(run.trainee.module, run.names)
        checkpoints.write_checkpoint(
            target, run.identity, run.state, weights, run.optimizer.state_dict(), random_states
        )
        checkpoints.prune_checkpoints(run.folder, run.stage.save_total_limit)
    run.accelerator.wait_for_everyone()
    run.last = Checkpoint(target, run.identity, run.state)


def _finish(run: _Run) -> StageResult:
    """Check that what is frozen stayed so, then write ``final/`` and the result."""
    guards.check_frozen(
        run.identity.frozen, guards.frozen_checksum(run.trainee.module, run.names), run.stage.name
    )
    state = run.state
    state.seconds = run.elapsed()
    result = StageResult(
        name=run.stage.name,
        steps=state.step,
        pairs=state.pairs,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        first_loss=state.first_loss,
        last_loss=state.last_loss,
        validation=list(state.validation),
        checkpoint=run.folder / FINAL,
        trained=run.rows,
        fingerprint=run.identity.fingerprint,
        peak_memory_mb=round(peak_memory_mb(), 1),
    )
    if run.accelerator.is_main_process:
        weights = checkpoints.trained_weights(run.trainee.module, run.names)
        checkpoints.write_checkpoint(run.folder / FINAL, run.identity, state, weights)
        result.save(run.folder)
    run.accelerator.wait_for_everyone()
    return result
