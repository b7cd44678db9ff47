"""Torch's modes and transforms: which tensors may be kept beyond a call, and what the compiled ops do not support.

A tensor that is computed while a mode is active can belong to that mode: a fake tensor has no memory, an inference
tensor cannot be saved for a backward pass, a dual tensor carries a tangent, and a tensor inside ``vmap`` or
``func.grad`` wraps another one. What is kept for later calls is computed outside all of them or is not kept.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["full_precision", "functorch_level", "is_plain", "is_wrapped"]

functorch_level = torch._C._functorch.maybe_current_level
"""The depth of nested transforms (``vmap``, ``func.grad``, ``func.jvp``), None outside of all."""


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is memory with numbers in it and belongs to no mode, transform or graph.

    Not plain: fake and functional tensors and other subclasses, inference tensors, dual tensors of forward-mode AD,
    tensors of a functorch transform, tensors that require a gradient, and those of a CUDA graph under capture, whose
    numbers are there after the first replay only.
    """
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.requires_grad or tensor.is_inference():
        return False
    if is_wrapped(tensor) or torch._is_functional_tensor(tensor):
        return False
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None:  # type: ignore[no-untyped-call]
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor belongs to a functorch transform and so has no values that can be read."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which products on ``device`` keep the precision of their operands: autocast is off."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
