"""cuSOLVER through torch against our blocked factorisation."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.measurements import CHOLESKY_BASELINE, Skipped, Timed
from benchmarks.gpu.stage_process import LostDeviceError
from benchmarks.gpu.turns import take_turns
from incline_fast.solver.linalg import cholesky_ex

__all__ = ["measure_cholesky"]


def measure_cholesky(
    size: int,
    dtype: torch.dtype,
    device: Device,
    culprits: Collection[str] = (),
    begin: Callable[[str], None] = lambda part: None,
) -> tuple[list[Timed], list[Skipped]]:
    """Check and time both on a random positive definite matrix; ``culprits`` are left out.

    Raises:
        LostDeviceError: the device cannot be used by this process any more.
    """
    begin("inputs")
    A = positive_definite(size, dtype, device)
    providers: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        CHOLESKY_BASELINE: lambda: torch.linalg.cholesky_ex(A),
        "blocked": lambda: cholesky_ex(A, backend="blocked"),
    }
    works: dict[str, Callable[[], object]] = {}
    errors: dict[str, float] = {}
    skipped: list[Skipped] = []
    job = f"cholesky {size} {dtype}"
    for name, work in providers.items():
        if name in culprits:
            continue
        begin(name)
        try:
            errors[name] = _error(work, A)
            works[name] = work
        except Exception as error:
            skipped.append(Skipped(job, name, f"{type(error).__name__}: {error}"))
            if not device.alive():
                raise LostDeviceError(f"{name} on {job}: {error}") from error
    begin("timing")
    times = take_turns(works, device)
    for name in works:
        errors[name] = max(errors[name], _error(providers[name], A))
    kinds = {CHOLESKY_BASELINE: "rival", "blocked": "ours"}
    return [Timed(name, kinds[name], times[name], errors[name]) for name in works], skipped


def positive_definite(size: int, dtype: torch.dtype, device: Device) -> Tensor:
    """A matrix whose smallest eigenvalue is one; random."""
    g = torch.Generator().manual_seed(size)
    X = torch.randn(size, size, generator=g, dtype=torch.float64).to(device.torch_device)
    return (X @ X.T / size + torch.eye(size, dtype=torch.float64, device=X.device)).to(dtype)


def _error(work: Callable[[], tuple[Tensor, Tensor]], A: Tensor) -> float:
    L, info = work()
    error = (L.double() @ L.double().mT - A.double()).abs().max().item()
    if info.item() != 0 or not error < 100 * len(A) * torch.finfo(A.dtype).eps:
        raise ArithmeticError(f"info {info.item()}, largest error {error:.2g}")
    return error
