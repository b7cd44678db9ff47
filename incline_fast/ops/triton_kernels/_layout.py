"""How tensors of any strides are passed to kernels that take one stride for all leading dimensions."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = ["collapses", "on_device_of", "stack"]


def collapses(tensor: Tensor, trailing: int) -> bool:
    """Whether one stride walks through all dimensions before the last ``trailing`` ones."""
    leading = tensor.dim() - trailing
    distance = None
    for size, stride in reversed(list(zip(tensor.shape[:leading], tensor.stride()[:leading], strict=True))):
        if size == 1:
            continue
        if distance is not None and stride != distance:
            return False
        distance = stride * size
    return True


def stack(tensor: Tensor, trailing: int) -> Tensor:
    """``[-1, *trailing dimensions]``: a view where one exists, a contiguous copy otherwise."""
    view = tensor if collapses(tensor, trailing) else tensor.contiguous()
    return view.view(-1, *tensor.shape[tensor.dim() - trailing :])


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device; this makes it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
