"""Price a plan on a GPU: FLOPs, hours with a band, money and memory, and training from scratch beside it."""

from collections import Counter
from collections.abc import Sequence

from vpgtrans.cost.hardware import Gpu
from vpgtrans.cost.memory import (
    Memory,
    cache_gb,
    largest_batch,
    memory_of,
    smallest_fitting,
    what_to_turn_on,
    without_cache,
    work_of,
)
from vpgtrans.cost.plan import StagePlan, with_pairs
from vpgtrans.cost.results import Cost, Estimate, Measured, Question
from vpgtrans.cost.savings import sharing_factor
from vpgtrans.cost.system import System
from vpgtrans.cost.tables import table
from vpgtrans.cost.tally import Tally
from vpgtrans.cost.utilisation import TimedRun, Utilisation
from vpgtrans.cost.work import cost_of_pass, sizes_of
from vpgtrans.errors import EstimateError


def estimate(
    question: Question,
    gpu: Gpu,
    utilisation: Utilisation,
    *,
    gpus: int = 1,
    probe: Measured | None = None,
) -> Estimate:
    """Price a question on one kind of GPU.

    A GPU that does not even hold one pair is still priced (``fits`` is False then, and ``assumptions`` say
    what would help).

    Raises:
        EstimateError: fewer than one GPU.
    """
    if gpus < 1:
        raise EstimateError(f"--gpus {gpus}: give at least one GPU")
    pricer = _Pricer(question.system, gpu, utilisation, probe, gpus)
    stages = tuple(pricer.stage(plan) for plan in question.plans)
    last = question.plans[-1]
    if question.published is not None:
        scratch = published_cost(question.published, gpu, utilisation)
    else:
        pairs = question.scratch_pairs
        if pairs is None:
            pairs = question.speedup.value * sum(plan.pairs for plan in question.plans)
        scratch = pricer.stage(with_pairs(last, last.name, pairs), question.scratch_name)
    memory = {plan.name: pricer.memory[plan.name] for plan in question.plans}
    largest = {plan.name: pricer.largest[plan.name] for plan in question.plans}
    return Estimate(
        system=question.system,
        gpu=gpu,
        gpus=gpus,
        stages=stages,
        total=_total(stages),
        scratch=scratch,
        speedup=question.speedup,
        memory=memory,
        largest=largest,
        cache_gb=max(cache_gb(question.system, plan) for plan in question.plans),
        memory_bound=pricer.memory_bound,
        assumptions=(*question.notes, *pricer.notes(gpus)),
        plans=question.plans,
        fits=all(largest.values()),
    )


def published_cost(name: str, gpu: Gpu, utilisation: Utilisation) -> Cost:
    """Return a published run's cost: its own hours on its own GPU, what the model says on another.

    Its memory was not published: 0.
    """
    row = table("runs")["runs"][name]
    run = TimedRun(row, gpu)
    hours = [run.hours(use) for use in (utilisation.point, utilisation.high, utilisation.low)]
    if row["gpu"] == gpu.name:
        hours = [float(row["gpu_hours"])] * 3
    middle, low, high = hours
    usd = None if gpu.price is None else middle * gpu.price
    return Cost(name, float(row["pairs"]), run.tflops * 1e12 * row["pairs"], middle, low, high, usd, 0.0)


def require_fit(estimates: Sequence[Estimate]) -> None:
    """Refuse a recipe that fits none of the asked GPUs.

    Raises:
        EstimateError: names what batch 1 needs, the smallest GPU that holds it, and what to turn on.
    """
    if any(one.fits for one in estimates):
        return
    one = estimates[-1]
    plan = next(plan for plan in one.plans if not one.largest[plan.name])
    need = memory_of(one.system, plan, 1).total
    raise EstimateError(
        f"stage '{plan.name}' does not fit {one.gpu.title} at batch 1: it needs {need:.1f} GB, there are "
        f"{one.gpu.memory_gb:g} GB; the smallest GPU that holds it: "
        f"{smallest_fitting(one.system, plan)}; on this one it would "
        f"with {what_to_turn_on(one.system, plan, one.gpu)}"
    )


class _Pricer:
    """Prices stages on one GPU, and remembers what it found on the way."""

    def __init__(
        self, system: System, gpu: Gpu, utilisation: Utilisation, probe: Measured | None, gpus: int
    ) -> None:
        self._system, self._gpu, self._use, self._probe = system, gpu, utilisation, probe
        self._gpus = gpus
        self.memory: dict[str, Memory] = {}
        self.largest: dict[str, int] = {}
        self.memory_bound = 0.0
        self._told: list[str] = []

    def stage(self, plan: StagePlan, name: str | None = None) -> Cost:
        """Return the cost of one stage."""
        micro = self._micro_batch(plan)
        passes = plan.pairs / micro
        work = cost_of_pass(self._system, work_of(plan, micro))
        shared = sharing_factor(self._system, plan)
        parts = [tally for part, tally in work.parts.items() if part != "LLM"]
        optimizer = _optimizer_step(work.trained_parameters)
        storing, images = self._storing(plan)
        flops = (
            passes * (sum(t.flops for t in parts) + shared * work.parts["LLM"].flops) + images * storing.flops
        )
        hours = []
        for use in (self._use.point, self._use.high, self._use.low):
            seconds = passes * sum(self._gpu.seconds(tally, use) for tally in parts)
            seconds += passes * shared * self._gpu.seconds(work.parts["LLM"], use)
            seconds += plan.pairs / plan.batch * self._gpu.seconds(optimizer, use)
            hours.append((seconds + images * self._gpu.seconds(storing, use)) / 3600)
        vision = sum(self._gpu.seconds(tally, self._use.point) for tally in parts)
        both = vision + shared * self._gpu.seconds(work.parts["LLM"], self._use.point)
        self._told.append(
            f"{plan.name}: the vision side, in {self._system.vpg_dtype}, is {vision / both:.0%} of the time"
        )
        self.memory_bound = max(self.memory_bound, self._gpu.memory_bound_share(work.total, self._use.point))
        peak = self.memory[plan.name].total
        if self._probe is not None:
            hours, peak = self._measured(plan, images)
        usd = None if self._gpu.price is None else hours[0] * self._gpu.price
        middle, low, high = hours
        return Cost(name or plan.name, plan.pairs, float(flops), middle, low, high, usd, peak)

    def notes(self, gpus: int) -> list[str]:
        """Return which inputs were measured, given or assumed."""
        gpu = self._gpu
        price = "no price known" if gpu.price is None else f"{gpu.price:g} USD a GPU-hour"
        notes = [f"price: {price} ({gpu.price_source})", *dict.fromkeys(self._told)]
        if self._probe is None:
            use = self._use
            notes.append(
                f"utilisation {use.point:.0%} of peak (band {use.low:.0%} to {use.high:.0%}), {use.source}"
            )
            notes.append("each operation at its peak or its memory bandwidth, whichever is slower")
        else:
            notes.append(
                f"time and memory measured: {self._probe.steps} steps of the real loop "
                f"on {self._probe.device}"
            )
        if "bfloat16" not in gpu.peaks and self._system.llm_dtype == "bfloat16" and "float16" in gpu.peaks:
            notes.append(f"{gpu.title} has no bfloat16: priced as float16")
        if gpus > 1:
            notes.append(f"{gpus} GPUs: the same GPU-hours, divided evenly (assumed: no loss between GPUs)")
        return notes

    def _micro_batch(self, plan: StagePlan) -> int:
        """Return the pairs of a pass: the recipe's, or as many as fit."""
        if plan.name not in self.largest:
            self._look(plan)
        fits = max(1, min(plan.micro_batch, self.largest[plan.name]))
        if not self.largest[plan.name]:
            help_ = what_to_turn_on(self._system, plan, self._gpu)
            self._told.append(f"{plan.name} does not fit {self._gpu.title} at batch 1; it would with {help_}")
        elif fits < plan.micro_batch:
            self._told.append(f"{plan.name}: {fits} pairs a pass, because {plan.micro_batch} do not fit")
        return fits

    def _look(self, plan: StagePlan) -> None:
        """Find how many pairs fit; if not one does, how many with the weights divided over all GPUs."""
        shards = 1
        fits = largest_batch(self._system, plan, self._gpu)
        if not fits and self._gpus > 1:
            shards = self._gpus
            fits = largest_batch(self._system, plan, self._gpu, shards)
            if fits:
                self._told.append(f"{plan.name}: fits only with FSDP over the {shards} GPUs")
        self.largest[plan.name] = fits
        micro = max(1, min(plan.micro_batch, fits))
        self.memory[plan.name] = memory_of(self._system, plan, micro, shards=shards)

    def _storing(self, plan: StagePlan) -> tuple[Tally, float]:
        """Return the vision encoder's cost an image, and how many images it is run on once; zero if never."""
        if not plan.cached:
            return Tally(), 0.0
        images = min(plan.images, plan.pairs)
        cost = cost_of_pass(self._system, work_of(without_cache(plan), 1))
        return cost.parts["frozen vision encoder"], images

    def _measured(self, plan: StagePlan, images: float) -> tuple[list[float], float]:
        probe = self._probe
        if probe is None or plan.name not in probe.seconds_per_pair:
            raise EstimateError(f"the probe did not measure stage '{plan.name}'")
        stored = images * probe.seconds_per_image
        hours = [(plan.pairs * seconds + stored) / 3600 for seconds in probe.seconds_per_pair[plan.name]]
        return hours, probe.peak_memory_gb[plan.name]


def _optimizer_step(parameters: int) -> Tally:
    """AdamW on so many float32 parameters: about ten operations, each reading and writing."""
    return Tally(Counter({(2 * parameters, 12 * parameters, "float32"): 10}))


def _total(stages: Sequence[Cost]) -> Cost:
    usd = [stage.usd for stage in stages]
    return Cost(
        "total",
        sum(stage.pairs for stage in stages),
        sum(stage.flops for stage in stages),
        sum(stage.gpu_hours for stage in stages),
        sum(stage.gpu_hours_low for stage in stages),
        sum(stage.gpu_hours_high for stage in stages),
        None if None in usd else sum(value for value in usd if value is not None),
        max(stage.peak_memory_gb for stage in stages),
    )


def parameters_of(system: System) -> int:
    """Return the parameters of the LLM."""
    return sizes_of(system).parameters["llm"]
