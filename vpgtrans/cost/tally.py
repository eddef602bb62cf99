"""Count what a computation would cost by running it on the meta device: every operation, no numbers.

FLOPs are torch's own formulas (``FlopCounterMode``). Beside them stand the bytes that each operation reads
and writes, so that memory-bound work is not priced at peak, and the largest number of bytes that live at
once, from the lifetimes of the tensors themselves.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

Op = tuple[int, int, str]
"""FLOPs, bytes moved, dtype of one operation."""


@dataclass(frozen=True)
class Tally:
    """What a computation costs; sums and multiples of it are what repeating it costs."""

    ops: Counter[Op] = field(default_factory=Counter)
    """Operation -> how often."""
    peak_bytes: float = 0
    """Most bytes alive at once, parameters and inputs left out, gradients within."""

    @property
    def flops(self) -> int:
        """All floating-point operations (a multiply-add is two)."""
        return sum(flops * times for (flops, _, _), times in self.ops.items())

    @property
    def bytes_moved(self) -> int:
        """Bytes read and written by all operations."""
        return sum(moved * times for (_, moved, _), times in self.ops.items())

    def __add__(self, other: "Tally") -> "Tally":
        ops = Counter(self.ops)
        ops.update(other.ops)
        return Tally(ops, self.peak_bytes + other.peak_bytes)

    def __sub__(self, other: "Tally") -> "Tally":
        ops = Counter(self.ops)
        ops.subtract(other.ops)
        return Tally(Counter({op: n for op, n in ops.items() if n}), self.peak_bytes - other.peak_bytes)

    def times(self, factor: int) -> "Tally":
        """Return the cost of ``factor`` repetitions whose tensors all stay alive."""
        return Tally(Counter({op: n * factor for op, n in self.ops.items()}), self.peak_bytes * factor)


def tally(run: Callable[[], Any]) -> Tally:
    """Run something on meta tensors and return what it would cost.

    Questions that code asks about a tensor's values (is the mask all ones?) are answered with yes or 1.
    """
    watch = _Watch()
    with FlopCounterMode(display=False) as counter, watch, _fused_attention():
        watch.counter = counter
        run()
    return Tally(watch.ops, watch.peak)


class _Watch(TorchDispatchMode):
    """Sees each operation below autograd."""

    counter: FlopCounterMode

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[Op] = Counter()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return True if args[0].dtype == torch.bool else 1
        before = self.counter.get_total_flops()
        out = func(*args, **kwargs)
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._see(read, made, self.counter.get_total_flops() - before, func)
        return out

    def _see(self, read: list[Tensor], made: list[Tensor], flops: int, func: Any) -> None:
        sources = {id(tensor.untyped_storage()) for tensor in read}
        fresh = [tensor for tensor in made if id(tensor.untyped_storage()) not in sources]
        for tensor in fresh:
            self._keep(tensor)
        if not flops and not fresh and not func._schema.is_mutable:
            return  # a view
        moved = sum(_size(tensor) for tensor in read) + sum(_size(tensor) for tensor in made)
        dtype = str((made or read)[0].dtype).removeprefix("torch.") if made or read else "float32"
        self.ops[(flops, moved, dtype)] += 1

    def _keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Take the fused kernel for attention, as a GPU does; on meta tensors torch takes it apart into matmuls.

    A function mode would not do: it is off while backward recomputes checkpointed layers.
    """
    functional = torch.nn.functional
    plain = functional.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not query.is_meta or query.shape[-1] != value.shape[-1]:
            return plain(query, key, value, *args, **kwargs)
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return _attend(query, key, value, bool(kwargs.get("is_causal", False)))

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    fused = torch.ops.aten._scaled_dot_product_flash_attention.default
    output: Tensor = fused(query, key, value, 0.0, causal)[0]
    return output


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
