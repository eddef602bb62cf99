"""The one training loop. A stage is data; warm-up and fine-tuning are two values, not two scripts.

The order inside a stage is fixed, so that it can be cut anywhere and go on as if nothing happened::

    [validation at 0] -> step 1 -> [validation at 1] -> [checkpoint 1] -> step 2 -> ... -> final/

Everything a step needs is a function of the step (batches, learning rate) or is in a checkpoint
(trained weights, moments, random states).
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from vpgtrans.errors import TrainingError
from vpgtrans.progress import SILENT, Progress, Task
from vpgtrans.recipe import Stage
from vpgtrans.training import checkpoints, guards, processes
from vpgtrans.training.optimizer import set_learning_rates
from vpgtrans.training.protocols import BatchSource, Trainable, TrainingBatch
from vpgtrans.training.randomness import preserved_random_state, random_state
from vpgtrans.training.results import StageResult, load_result
from vpgtrans.training.schedules import check_rates
from vpgtrans.training.session import Job, Session, finish, open_session, save
from vpgtrans.training.trainable import freeze, trained_names

__all__ = ["BatchSource", "StageResult", "Trainable", "TrainingBatch", "run_stage"]


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
        KeyboardInterrupt: passed on, after a checkpoint of the last whole step was written.
    """
    check_rates(stage)
    accelerator = processes.start_accelerator(report_to, folder.parent)
    names = trained_names(trainee.module, trainee.parts, stage.parts)
    trainee.module.to(accelerator.device)
    shown = progress if accelerator.is_main_process else SILENT
    job = Job(
        trainee,
        stage,
        batches,
        folder,
        seed,
        fingerprint,
        names,
        validation,
        report_to,
        shown,
        start_checksum,
    )
    result = _finished(job)
    if result:
        return result
    with preserved_random_state():
        try:
            return _train(open_session(job, accelerator))
        finally:
            freeze(trainee.module)


def _finished(job: Job) -> StageResult | None:
    """Load a finished stage's weights and return its result; None if there is something left to do."""
    result = load_result(job.folder, job.fingerprint)
    final = checkpoints.open_checkpoint(job.folder / checkpoints.FINAL) if result else None
    if result is None or final is None:
        return None
    checkpoints.check_fingerprint(final, job.fingerprint)
    final.load_weights(job.trainee.module, job.names)
    freeze(job.trainee.module)
    job.progress.note(f"{job.stage.name}: already trained ({result.steps} steps), nothing to do")
    return result


def _train(session: Session) -> StageResult:
    job, state = session.job, session.state
    session.log.trackers = processes.start_trackers(session.accelerator, job.report_to, job.stage)
    title = f"{job.stage.name}: training {', '.join(sorted(job.stage.parts))}"
    if state.step:
        title += f" (from step {state.step})"
    idle = processes.idle_processes(session.accelerator, job.stage)
    if idle:
        job.progress.note(idle)
    pairs_left = (job.batches.num_steps - state.step) * job.stage.batch_size
    try:
        with job.progress.task(title, total=pairs_left, unit="pairs") as task:
            _steps(session, task)
        return finish(session)
    except KeyboardInterrupt:
        # with several processes each stands somewhere else, and writing together would hang
        if session.whole and state.step and session.accelerator.num_processes == 1:
            save(session)
        raise
    finally:
        for tracker in session.log.trackers:
            tracker.finish()


def _steps(session: Session, task: Task) -> None:
    """Alternate validations, checkpoints and steps up to the last step."""
    stage, num_steps = session.job.stage, session.job.batches.num_steps
    tenth = max(1, math.ceil(num_steps / 10))
    eval_steps, save_steps = stage.eval_steps or tenth, stage.save_steps or tenth
    while True:
        step = session.state.step
        if step % eval_steps == 0 or step >= num_steps:
            _validate(session)
        if step and step % save_steps == 0:
            save(session)
        if step >= num_steps:
            return
        _step(session, task)


def _step(session: Session, task: Task) -> None:
    """Take one optimizer step over an effective batch."""
    job, state, began = session.job, session.state, time.monotonic()
    session.modes.apply()
    session.optimizer.zero_grad(set_to_none=True)
    rates = set_learning_rates(session.optimizer, job.stage, state.step, job.batches.num_steps)
    measured = _gradients(session)
    session.whole = False
    session.optimizer.step()
    state.step += 1
    state.pairs += measured.pairs
    state.tokens += measured.tokens
    state.first_loss = measured.loss if state.first_loss is None else state.first_loss
    state.last_loss = measured.loss
    session.random = random_state()
    session.log.add(
        state.step,
        state.pairs,
        loss=measured.loss,
        learning_rate=rates,
        grad_norm=measured.grad_norm,
        tokens=measured.tokens,
        seconds=round(session.elapsed(), 3),
        pairs_per_second=round(measured.pairs / max(1e-9, time.monotonic() - began), 3),
    )
    session.whole = True
    task.advance(measured.pairs)
    task.show(loss=measured.loss)


def _gradients(session: Session) -> guards.Measured:
    """Leave the gradient of the mean token loss of the effective batch in the parameters, clipped.

    Micro-batches add up the gradients of their loss SUMS, which are then divided by the number of all
    supervised tokens: exactly one big batch, however the texts' lengths differ.

    Raises:
        TrainingError: if loss or gradient are not fit for an optimizer step.
    """
    job, accelerator = session.job, session.accelerator
    losses: list[torch.Tensor] = []
    pair_ids: list[str] = []
    tokens = 0
    for batch in processes.own_share(accelerator, job.batches.micro_batches(session.state.step)):
        loss, count = job.trainee.loss(batch.to(accelerator.device))
        pair_ids += batch.pair_ids
        tokens += count
        losses.append(loss.detach().double())
        if loss.requires_grad:
            accelerator.backward(loss)
    if session.state.step == 0 and losses:
        guards.check_gradients_reach(job.trainee.module, job.trainee.parts, job.stage.parts, session.place)
    loss_sum = float(torch.stack(losses).sum()) if losses else 0.0
    processes.sum_gradients(accelerator, session.parameters)
    loss_sum, all_tokens, all_pairs = processes.sum_counts(accelerator, [loss_sum, tokens, len(pair_ids)])
    divisor = max(1.0, all_tokens)
    gradients = [parameter.grad for parameter in session.parameters if parameter.grad is not None]
    norm = guards.scale_and_clip(gradients, divisor, job.stage.max_grad_norm)
    measured = guards.Measured(loss_sum / divisor, norm, int(all_tokens), int(all_pairs))
    reason = guards.broken(measured)
    if reason:
        raise guards.failed(reason, session.place, processes.gather_list(accelerator, pair_ids))
    return measured


def _validate(session: Session) -> None:
    """Measure the held-out loss once a step, apart from the training's modes and random states."""
    job, state = session.job, session.state
    if job.validation is None or state.validated(state.step):
        return
    job.trainee.module.eval()
    with preserved_random_state(), torch.no_grad():
        loss = float(job.validation())
    if not math.isfinite(loss):
        raise TrainingError(
            f"stage '{job.stage.name}': the validation loss is {loss} at step {state.step}; last good "
            f"checkpoint: {session.last or 'none yet'}"
        )
    session.whole = False
    session.log.add(state.step, state.pairs, validation_loss=loss)
    state.validation.append((state.step, state.pairs, loss))
    session.whole = True
