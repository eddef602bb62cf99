"""Memory of one GPU during a stage, the largest micro-batch that fits, and what to turn on if none does."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vpgtrans.cost.hardware import Gpu, find_gpu, gpu_names
from vpgtrans.cost.plan import StagePlan
from vpgtrans.cost.system import System
from vpgtrans.cost.work import Work, cost_of_pass, sizes_of

RESERVED_GB = 1.0
"""Assumed for the CUDA context, libraries and what the allocator cannot fill."""
OPTIMIZER_BYTES = 8
"""AdamW's two float32 moments a trained parameter."""
FOUR_BIT = 0.5625
"""Bytes a weight of 4-bit quantisation with its scales."""
GPU_COUNTS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Memory:
    """GB (1e9 bytes) on one GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    reserved: float = RESERVED_GB

    @property
    def total(self) -> float:
        """All of it."""
        return sum(asdict(self).values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "total": self.total}


def memory_of(
    system: System,
    plan: StagePlan,
    micro_batch: int,
    *,
    checkpointing: bool = False,
    llm_bytes: float | None = None,
    shards: int = 1,
) -> Memory:
    """Return what a pass of ``micro_batch`` pairs takes.

    Args:
        system: the models.
        plan: the stage.
        micro_batch: pairs of one pass.
        checkpointing: the LLM's activations are computed a second time.
        llm_bytes: bytes a weight of the frozen LLM, if quantised.
        shards: GPUs that weights, gradients and optimizer are divided over (FSDP).
    """
    cost = cost_of_pass(system, work_of(plan, micro_batch, checkpointing=checkpointing))
    sizes = sizes_of(system)
    weights = float(sum(sizes.weight_bytes.values()))
    if llm_bytes is not None:
        weights += sizes.parameters["llm"] * llm_bytes - sizes.weight_bytes["llm"]
    trained = sizes.trained(plan.trained)
    # 16-bit logits, their float32 copy and its gradient
    logits = micro_batch * plan.texts.logit_tokens * int(system.llm.get("vocab_size", 32000)) * 10 / 1e9
    dynamic = cost.activation_bytes / 1e9
    logits = min(logits, dynamic)
    return Memory(
        weights=weights / 1e9 / shards,
        gradients=cost.gradient_bytes / 1e9 / shards,
        optimizer=trained * OPTIMIZER_BYTES / 1e9 / shards,
        activations=dynamic - logits,
        logits=logits,
    )


def work_of(plan: StagePlan, micro_batch: int, *, checkpointing: bool = False) -> Work:
    """Return one pass of a stage."""
    images = max(1, -(-micro_batch // plan.texts_per_visit))
    return Work(
        pairs=micro_batch,
        images=images,
        text_tokens=plan.texts.tokens,
        logit_tokens=plan.texts.logit_tokens,
        trained=plan.trained,
        cached=plan.cached,
        checkpointing=checkpointing,
    )


def largest_batch(system: System, plan: StagePlan, gpu: Gpu, shards: int = 1) -> int:
    """Return the most pairs of one pass that fit a GPU; 0 if not even one does.

    Memory grows in a line with the batch, so that two points tell it.
    """
    one = memory_of(system, plan, 1, shards=shards).total
    many = memory_of(system, plan, 17, shards=shards).total
    slope = max((many - one) / 16, 1e-9)
    if one > gpu.memory_gb:
        return 0
    batch = max(1, min(int((gpu.memory_gb - one) / slope) + 1, 4096))
    # allocations round up, so the line may end a little too high
    while batch > 1 and memory_of(system, plan, batch, shards=shards).total > gpu.memory_gb:
        batch -= max(1, batch // 64)
    return batch


def what_to_turn_on(system: System, plan: StagePlan, gpu: Gpu) -> str:
    """Say the cheapest change with which batch 1 fits a GPU that is too small."""
    ways: Sequence[tuple[str, dict[str, Any]]] = (
        ("gradient checkpointing", {"checkpointing": True}),
        ("the frozen LLM in 8 bit", {"llm_bytes": 1.06}),
        ("the frozen LLM in 8 bit with gradient checkpointing", {"llm_bytes": 1.06, "checkpointing": True}),
        ("the frozen LLM in 4 bit", {"llm_bytes": FOUR_BIT}),
        (
            "the frozen LLM in 4 bit with gradient checkpointing",
            {"llm_bytes": FOUR_BIT, "checkpointing": True},
        ),
    )
    for words, options in ways:
        need = memory_of(system, plan, 1, **options).total
        if need <= gpu.memory_gb and not ("llm" in plan.trained and "llm_bytes" in options):
            return f"{words} ({need:.1f} GB)"
    for count in GPU_COUNTS:
        need = memory_of(system, plan, 1, shards=count).total
        if need <= gpu.memory_gb:
            return f"FSDP over {count} of them ({need:.1f} GB each)"
    return "nothing: take a smaller LLM"


def smallest_fitting(system: System, plan: StagePlan) -> str:
    """Return the name of the smallest known GPU that batch 1 fits, or what it needs."""
    need = memory_of(system, plan, 1).total
    fitting = [gpu for gpu in map(find_gpu, gpu_names()) if gpu.memory_gb >= need]
    if not fitting:
        return f"none of the known ones ({need:.0f} GB)"
    best = min(fitting, key=lambda gpu: (gpu.memory_gb, gpu.price or 0))
    return f"{best.name} ({best.memory_gb:g} GB)"


def cache_gb(system: System, plan: StagePlan) -> float:
    """Return the size of the stored vision features on disk."""
    if not plan.cached or not system.vision:
        return 0.0
    return plan.images * feature_bytes(system) / 1e9


def feature_bytes(system: System) -> int:
    """Return the bytes of one image's stored vision features (float32)."""
    return system.patches * int(system.vision.get("hidden_size", 1408)) * 4


def without_cache(plan: StagePlan) -> StagePlan:
    """Return the same stage with vision features computed each time."""
    return replace(plan, cached=False)
