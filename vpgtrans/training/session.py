"""One stage under way: everything it holds, how it starts or resumes, how it is saved and ended."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from vpgtrans.errors import RunFolderError
from vpgtrans.progress import SILENT, Progress
from vpgtrans.recipe import Stage
from vpgtrans.training import checkpoints, guards, processes
from vpgtrans.training.checkpoints import FINAL, Checkpoint, Identity, StageState
from vpgtrans.training.metrics import METRICS_FILE, MetricsLog
from vpgtrans.training.optimizer import make_optimizer, peak_rates
from vpgtrans.training.protocols import BatchSource, Trainable
from vpgtrans.training.randomness import (
    RandomState,
    random_state,
    restore_random_state,
    seed_everything,
    stage_seed,
)
from vpgtrans.training.results import StageResult, peak_memory_mb
from vpgtrans.training.trainable import Modes, PartRow, current_modes, set_trainable


@dataclass(frozen=True)
class Job:
    """What the caller of ``run_stage`` asked for."""

    trainee: Trainable
    stage: Stage
    batches: BatchSource
    folder: Path
    seed: int
    fingerprint: str
    names: frozenset[str]
    """Full names of the trained parameters."""
    validation: Callable[[], float] | None = None
    report_to: Sequence[str] = ()
    progress: Progress = SILENT
    start_checksum: str | None = None


@dataclass
class Session:
    """A stage under way in this process."""

    job: Job
    accelerator: Accelerator
    optimizer: torch.optim.AdamW
    identity: Identity
    state: StageState
    modes: Modes
    table: list[PartRow]
    log: MetricsLog
    last: Path | None
    """Folder of the newest checkpoint."""
    random: RandomState
    """The random states after the last whole step."""
    seconds_before: float
    whole: bool = True
    """False while a step changes weights, counts and metrics: nothing may be saved then."""
    started: float = field(default_factory=time.monotonic)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The trained parameters, in the optimizer's order."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    @property
    def place(self) -> guards.Place:
        """Where the next step stands, for messages."""
        return guards.Place(self.job.folder, self.job.stage.name, self.state.step + 1, self.last)

    def elapsed(self) -> float:
        """Return the seconds of all sessions so far."""
        return self.seconds_before + time.monotonic() - self.started


def open_session(job: Job, accelerator: Accelerator) -> Session:
    """Set the module up for a stage, and load the newest checkpoint if there is one.

    Raises:
        RunFolderError: if the newest checkpoint belongs to another recipe or other frozen weights.
        TrainingError: if a trained part is not float32.
    """
    module, stage, process = job.trainee.module, job.stage, accelerator.process_index
    guards.check_precision(module, job.names)
    if accelerator.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(accelerator.device)
    table = set_trainable(module, job.trainee.parts, stage.parts, peak_rates(stage))
    frozen = job.start_checksum or _frozen_checksum(job)
    optimizer = make_optimizer(module, job.trainee.parts, stage)
    seed_everything(stage_seed(job.seed, stage.name, process))
    job.folder.mkdir(parents=True, exist_ok=True)
    last = checkpoints.newest_checkpoint(job.folder, job.fingerprint)
    if last:
        _resume(last, job, optimizer, frozen, process)
    state = last.state if last else StageState()
    if accelerator.is_main_process:
        for path in checkpoints.discard_after(job.folder, state.step):
            job.progress.note(f"{path} is damaged; going on from step {state.step} instead")
    log = MetricsLog(job.folder.parent / METRICS_FILE, stage.name, accelerator.is_main_process)
    log.cut_back(state.step, {step for step, _, _ in state.validation})
    return Session(
        job=job,
        accelerator=accelerator,
        optimizer=optimizer,
        identity=Identity(stage.name, job.fingerprint, job.seed, frozen),
        state=state,
        modes=current_modes(module),
        table=table,
        log=log,
        last=last.folder if last else None,
        random=random_state(),
        seconds_before=state.seconds,
    )


def save(session: Session) -> None:
    """Write a checkpoint of the last whole step, then remove the ones it replaces."""
    job, accelerator = session.job, session.accelerator
    target = checkpoints.checkpoint_path(job.folder, session.state.step)
    if session.last == target:
        return
    random_states = processes.gather_list(accelerator, [session.random])
    session.state.seconds = session.elapsed()
    if accelerator.is_main_process:
        weights = checkpoints.trained_weights(job.trainee.module, job.names)
        checkpoints.write_checkpoint(
            target, session.identity, session.state, weights, session.optimizer.state_dict(), random_states
        )
        checkpoints.prune_checkpoints(job.folder, job.stage.save_total_limit)
    session.last = target
    accelerator.wait_for_everyone()


def finish(session: Session) -> StageResult:
    """Check that what is frozen stayed so, then write ``final/`` and ``result.json``.

    Raises:
        TrainingError: if a frozen weight changed; nothing is written then.
    """
    job, state = session.job, session.state
    guards.check_frozen(session.identity.frozen, _frozen_checksum(job), job.stage.name)
    state.seconds = session.elapsed()
    result = StageResult(
        name=job.stage.name,
        steps=state.step,
        pairs=state.pairs,
        tokens=state.tokens,
        seconds=round(state.seconds, 3),
        first_loss=state.first_loss,
        last_loss=state.last_loss,
        validation=list(state.validation),
        checkpoint=job.folder / FINAL,
        trained=session.table,
        fingerprint=job.fingerprint,
        peak_memory_mb=round(peak_memory_mb(session.accelerator.device), 1),
    )
    if session.accelerator.is_main_process:
        weights = checkpoints.trained_weights(job.trainee.module, job.names)
        checkpoints.write_checkpoint(job.folder / FINAL, session.identity, state, weights)
        result.save(job.folder)
    session.accelerator.wait_for_everyone()
    return result


def _resume(last: Checkpoint, job: Job, optimizer: torch.optim.Optimizer, frozen: str, process: int) -> None:
    """Load weights, moments and random states."""
    if last.identity.frozen != frozen:
        raise RunFolderError(
            f"{last.folder} was trained over other frozen weights (sha256 {last.identity.frozen[:12]}, "
            f"now {frozen[:12]}); choose another output folder or delete this one"
        )
    last.load_weights(job.trainee.module, job.names)
    last.load_optimizer(optimizer)
    state = last.random_state(process)
    if state is not None:
        restore_random_state(state)


def _frozen_checksum(job: Job) -> str:
    with job.progress.task(f"{job.stage.name}: checksum of the frozen weights"):
        return guards.frozen_checksum(job.trainee.module, job.names)
