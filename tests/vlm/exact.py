"""Float64 all the way: transformers casts norms, rotary angles and softmaxes to float32 by itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch


@contextmanager
def float64_everywhere() -> Iterator[None]:
    """Let every cast to float32 inside be one to float64, so that two orders of the sums agree to 1e-10."""
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
    ):
        yield
