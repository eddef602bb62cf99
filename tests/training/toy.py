"""A small hand-written trainee: frozen 'language model', VPG with dropout, bare query tokens, projector."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from vpgtrans.recipe import Stage


@dataclass
class ToyBatch:
    pair_ids: list[str]
    images: torch.Tensor  # (B, 6)
    labels: torch.Tensor  # (B, L), -100 where unsupervised

    def to(self, device):
        return ToyBatch(self.pair_ids, self.images.to(device), self.labels.to(device))


class ToyModel(nn.Module):
    """vision (frozen by default) -> qformer with dropout + query_tokens -> projector -> frozen llm."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.query_tokens = nn.Parameter(torch.randn(1, 3, 8))
        self.vision = nn.Sequential(nn.Linear(6, 8), nn.Dropout(dropout))
        self.vision_norm = nn.LayerNorm(8)
        self.qformer = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(dropout), nn.LayerNorm(8))
        self.projector = nn.Linear(8, 5)
        self.llm = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 11))
        self.llm.register_buffer("positions", torch.arange(4.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 6) -> logits (B, 3, 11)."""
        seen = self.vision_norm(self.vision(images))[:, None] + self.query_tokens
        return self.llm(self.projector(self.qformer(seen)))


@dataclass
class ToyTrainee:
    module: ToyModel
    before_loss: Callable[["ToyTrainee"], None] = lambda trainee: None
    calls: int = 0
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self):
        prefixes = {
            "vision_encoder": "vision.",
            "vision_norm": "vision_norm.",
            "query_tokens": "query_tokens",
            "qformer": "qformer.",
            "projector": "projector.",
        }
        names = [name for name, _ in self.module.named_parameters()]
        self.parts = {
            part: tuple(name for name in names if name.startswith(prefix))
            for part, prefix in prefixes.items()
        }

    def loss(self, batch: ToyBatch):
        self.calls += 1
        self.before_loss(self)
        logits = self.module(batch.images)
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch.labels.flatten(), ignore_index=-100, reduction="sum"
        )
        return loss, int((batch.labels != -100).sum())


def toy_trainee(seed: int = 0, dropout: float = 0.3, dtype: torch.dtype = torch.float32) -> ToyTrainee:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ToyTrainee(ToyModel(dropout).to(dtype).eval())


@dataclass
class ToyBatches:
    """Pairs drawn by step from a seeded generator, cut into micro-batches."""

    num_steps: int
    batch_size: int = 8
    micro: int = 8
    dtype: torch.dtype = torch.float32
    before: Callable[[int], None] = lambda step: None

    def micro_batches(self, step: int) -> list[ToyBatch]:
        self.before(step)
        generator = torch.Generator().manual_seed(1000 + step)
        images = torch.randn(self.batch_size, 6, generator=generator).to(self.dtype)
        labels = torch.randint(0, 11, (self.batch_size, 3), generator=generator)
        # texts of different lengths: means over micro-batches and over the whole batch must differ
        lengths = torch.randint(1, 4, (self.batch_size, 1), generator=generator)
        labels[torch.arange(3)[None] >= lengths] = -100
        ids = [f"step{step}-pair{index}" for index in range(self.batch_size)]
        return [
            ToyBatch(ids[i : i + self.micro], images[i : i + self.micro], labels[i : i + self.micro])
            for i in range(0, self.batch_size, self.micro)
        ]


def toy_stage(
    name: str = "warmup", train: tuple[str, ...] = ("qformer", "query_tokens", "projector"), **extra
):
    """A short stage with a checkpoint every 3 steps and a validation every 4."""
    values = {
        "name": name,
        "train": train,
        "learning_rate": 1e-2,
        "min_learning_rate": 1e-3,
        "max_steps": 8,
        "batch_size": 8,
        "save_steps": 3,
        "eval_steps": 4,
    }
    return Stage(**{**values, **extra})


def toy_validation(trainee: ToyTrainee) -> Callable[[], float]:
    """Held-out loss over one fixed batch."""
    batch = ToyBatches(1, dtype=trainee.module.query_tokens.dtype).micro_batches(777)[0]

    def measure() -> float:
        loss, count = trainee.loss(batch.to(torch.device("cpu")))
        return float(loss) / count

    return measure


def weights_of(trainee: ToyTrainee) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainee.module.named_parameters()}
