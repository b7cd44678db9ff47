"""Are the kernels right on this device? python -m benchmarks.gpu.checks [--small] adds a line per check to checks.csv.

    parity    every backend against the fp64 reference, functional and in place
    replay    a captured graph, replayed with new inputs and without anything being reset between
    streams   two CUDA streams at once, whose launches must not share the counters by which programs hand over
    overlap   calls that read each other's results, launched programmatically: the bits of usual launches
    bulk      the CUDA kernels with bulk copies, which only newer GPUs have: the bits of those without
    cholesky  the blocked factorisation against fp64

``--small`` is what comes first, and what the sanitizer runs, a hundred times slower.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import torch
from torch import Tensor

from benchmarks.gpu.device import Device
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.providers import set_bulk_copies
from benchmarks.gpu.stage_process import LostDeviceError, add_arguments, run_as_stage
from benchmarks.gpu.tables import append
from incline_fast import ops
from incline_fast.bench.machine import commit
from incline_fast.bench.problems import dtype_name
from incline_fast.maps import AffineMap
from incline_fast.ops import reference
from incline_fast.solver.linalg import cholesky_ex

__all__ = ["LARGE", "SMALL", "Case", "all_checks", "make", "run_checks"]

COLUMNS = ("stage", "check", "result", "reason", "device", "commit")

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
RELATIVE_RMS = {FP32: 1e-6, FP16: 1e-3, BF16: 5e-3}
"""Root mean square of the error over that of the result, for sums up to 256 long; beyond, times sqrt(length / 256)."""


@dataclass(frozen=True)
class Case:
    """A problem's arguments on the device; ``call`` are the keyword arguments that all forms share."""

    norm: str
    x: Tensor
    residual: Tensor | None
    weight: Tensor
    map: AffineMap
    call: dict[str, Tensor | float]

    def functional(self, backend: str) -> tuple[Tensor, Tensor]:
        """(y, r')."""
        options = {**self.call, "residual": self.residual, "backend": backend}
        if self.norm == "rms":
            return ops.affine_rms_norm(self.x, self.weight, self.map, **options)  # type: ignore[arg-type]
        return ops.affine_layer_norm(self.x, self.weight, self.weight, self.map, **options)  # type: ignore[arg-type]

    def in_place(self, backend: str, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """(y, r') of the form that writes to x and residual."""
        options = {**self.call, "residual": residual, "backend": backend}
        if self.norm == "rms":
            y = ops.affine_rms_norm_(x, self.weight, self.map, **options)  # type: ignore[arg-type]
        else:
            y = ops.affine_layer_norm_(x, self.weight, self.weight, self.map, **options)  # type: ignore[arg-type]
        return y, x if residual is None else residual

    def expected(self) -> tuple[Tensor, Tensor]:
        """fp64 (y, r') of the same numbers."""
        map = self.map.to(torch.float64)
        options = {
            k: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in self.call.items()
        }
        x, residual, weight = self.x.double(), self.residual, self.weight.double()
        options["residual"] = None if residual is None else residual.double()  # type: ignore[assignment]
        if self.norm == "rms":
            return reference.affine_rms_norm(x, weight, map.down, map.up, **options)  # type: ignore[arg-type]
        return reference.affine_layer_norm(x, weight, weight, map.down, map.up, **options)  # type: ignore[arg-type]


Shape = tuple[str, int, int, int | None, torch.dtype, torch.dtype, bool, int]
"""(norm, tokens, hidden, rank, dtype, map dtype, with a residual, maps); one map and many tokens is torch's product."""
RING: tuple[Shape, ...] = (
    ("rms", 1, 1280, None, BF16, BF16, False, 1),
    ("layer", 9, 2112, None, BF16, torch.int8, True, 1),
    ("rms", 16, 1024, None, FP16, FP16, True, 1),
)
"""What the CUDA kernel with bulk copies serves, on GPUs that have them: with one map and no row_map."""
ONE_CLUSTER: tuple[Shape, ...] = (
    ("rms", 1, 4096, 64, BF16, BF16, False, 1),
    ("layer", 8, 1600, 112, FP16, FP16, True, 1),
    ("rms", 3, 8192, 32, BF16, torch.int8, True, 1),
)
"""What the CUDA kernel for one cluster serves, likewise."""
SMALL: tuple[Shape, ...] = (
    ("rms", 1, 769, None, BF16, BF16, False, 1),
    ("layer", 3, 256, 20, FP16, torch.int8, True, 3),
    ("rms", 70, 64, None, FP32, BF16, True, 3),
    *RING,
    *ONE_CLUSTER,
)
_KINDS = ((BF16, BF16), (FP16, FP16), (FP32, FP32), (FP32, BF16), (BF16, torch.int8), (BF16, FP16))
_SIZES = ((1, 4096), (5, 769), (17, 5125), (64, 2048), (300, 1024))
LARGE: tuple[Shape, ...] = SMALL + tuple(
    (("layer", "rms")[m % 2], m, d, (None, 1, 500)[number % 3], dtype, map_dtype, number % 2 == 1, 1 if m > 64 else 3)
    for number, ((dtype, map_dtype), (m, d)) in enumerate(product(_KINDS, _SIZES))
)
"""Every dtype meets every size; ranks and residuals take turns, since Triton compiles a second for each new kernel."""


def make(shape: Shape, device: torch.device) -> Case:
    """A random case; rows take the maps in turn, and every fifth row none."""
    norm, tokens, hidden, rank, dtype, map_dtype, with_residual, maps = shape
    g = torch.Generator().manual_seed(hidden + tokens)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*size, generator=g) * scale

    if rank is None:
        map = AffineMap.dense(normal(maps, hidden, hidden, scale=hidden**-0.5))
    else:
        map = AffineMap.low_rank(
            normal(maps, rank, hidden, scale=hidden**-0.5), normal(maps, hidden, rank, scale=rank**-0.5)
        )
    map = map.quantize() if map_dtype is torch.int8 else map.to(map_dtype)
    rows = torch.arange(tokens, dtype=torch.int32)
    call: dict[str, Tensor | float] = {
        "bias": normal(maps, hidden).to(device, dtype),
        "alpha": torch.linspace(0.2, 0.6, tokens).to(device),
        "row_map": torch.where(rows % 5 == 4, -1, rows % maps).to(device),
    }
    x = normal(tokens, hidden).to(device, dtype)
    residual = normal(tokens, hidden).to(device, dtype) if with_residual else None
    return Case(norm, x, residual, (normal(hidden) + 1).to(device, dtype), map.to(device=device), call)


def _judge(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...], length: int) -> str:
    """Empty if all are near, otherwise what is not."""
    for name, tensor, wanted in zip(("y", "r'"), actual, expected, strict=True):
        error = ((tensor.double() - wanted).square().mean() / wanted.square().mean()).sqrt().item()
        bound = RELATIVE_RMS[tensor.dtype] * max(1.0, length / 256) ** 0.5
        if not error < bound:
            return f"{name} is off by {error:.2g} in relative root mean square, allowed {bound:.2g}"
    return ""


def _parity(case: Case, backend: str, device: Device) -> str:
    expected, hidden = case.expected(), case.x.shape[-1]
    actual = case.functional(backend)
    wrong = _judge(actual, expected, hidden)
    again = case.in_place(backend, case.x.clone(), None if case.residual is None else case.residual.clone())
    if not wrong and not all(torch.equal(a, b) for a, b in zip(actual, again, strict=True)):
        wrong = "the in-place form gives other bits"
    return wrong


def _replay(case: Case, backend: str, device: Device) -> str:
    x, residual = case.x.clone(), None if case.residual is None else case.residual.clone()
    outputs: list[tuple[Tensor, Tensor]] = []
    replay = device.capture(lambda: outputs.append(case.in_place(backend, x, residual)))
    for attempt in range(3):
        x.copy_(case.x * (attempt + 1))
        if residual is not None:
            residual.copy_(case.residual)
        changed = Case(case.norm, case.x * (attempt + 1), case.residual, case.weight, case.map, case.call)
        replay()
        device.synchronize()
        if not all(torch.equal(a, b) for a, b in zip(outputs[-1], changed.functional(backend), strict=True)):
            return f"replay {attempt + 1} gives other bits than the same call outside of a graph"
    return ""


def _streams(case: Case, backend: str, device: Device) -> str:
    wanted = case.functional(backend)
    device.synchronize()
    results: list[tuple[Tensor, Tensor]] = []
    cuda_streams = (device.cuda_stream(), device.cuda_stream())
    for _ in range(20):
        for cuda_stream in cuda_streams:
            with cuda_stream:
                results.append(case.functional(backend))
    device.synchronize()
    wrong = sum(not all(torch.equal(a, b) for a, b in zip(result, wanted, strict=True)) for result in results)
    return f"{wrong} of {len(results)} calls give other bits" if wrong else ""


_CHAIN = 8
"""Calls in a row of the check of overlapping launches."""


def _with_one_map(case: Case) -> Case:
    """Without a row_map: every row takes the first map."""
    scales = (case.map.down_scale, case.map.up_scale)
    down, up, down_scale, up_scale = (None if t is None else t[:1] for t in (case.map.down, case.map.up, *scales))
    map = AffineMap(down, up, down_scale=down_scale, up_scale=up_scale)
    call = {"bias": case.call["bias"][:1], "alpha": case.call["alpha"]}  # type: ignore[index]
    return replace(case, map=map, call=call)


def _bulk(case: Case, backend: str, device: Device) -> str:
    """With the decode kernels alone, since torch's product takes fewer tokens from those with bulk copies."""
    single = _with_one_map(case)
    ops.set_batch_invariant(True)
    try:
        found = single.functional(backend)
        set_bulk_copies(False)
        wanted = single.functional(backend)
    finally:
        set_bulk_copies(True)
        ops.set_batch_invariant(False)
    device.synchronize()
    equal = all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    return "" if equal else "bulk copies, or a cluster, give other bits"


def _overlap(case: Case, backend: str, device: Device) -> str:
    """Without a row_map, so that the map's weights are read before the launch ahead has ended."""
    single = _with_one_map(case)

    def chain() -> list[Tensor]:
        results, x = [], case.x
        for _ in range(_CHAIN):
            x, edited = replace(single, x=x).functional(backend)
            results += [x, edited]
        return results

    wanted = chain()
    device.synchronize()
    captured: list[list[Tensor]] = []
    ops.set_programmatic_launch(True)
    try:
        found = {"outside of a graph": chain()}
        replay = device.capture(lambda: captured.append(chain()))
    finally:
        ops.set_programmatic_launch(False)
    replay()
    replay()
    device.synchronize()
    found["in a graph"] = captured[-1]
    wrong = [
        where for where, got in found.items() if not all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    ]
    return f"overlapping launches give other bits {' and '.join(wrong)}" if wrong else ""


def _cholesky(size: int, dtype: torch.dtype, device: Device) -> str:
    g = torch.Generator().manual_seed(size)
    X = torch.randn(size, size, generator=g, dtype=torch.float64)
    A = (X @ X.T / size + torch.eye(size, dtype=torch.float64)).to(device.torch_device, dtype)
    L, info = cholesky_ex(A, backend="blocked")
    wanted = torch.linalg.cholesky(A.double())
    error = (L - wanted).abs().max().item()
    bound = 30 * size * torch.finfo(dtype).eps
    return "" if info.item() == 0 and error < bound else f"info {info.item()}, off by {error:.2g}, allowed {bound:.2g}"


Check = Callable[[], str]


def all_checks(device: Device, shapes: tuple[Shape, ...]) -> Iterator[tuple[str, Check]]:
    """(name, check) of all checks; a check says what is wrong, or nothing."""
    kinds: dict[str, Callable[[Case, str, Device], str]] = {"parity": _parity, "replay": _replay}
    kinds |= {"streams": _streams, "overlap": _overlap, "bulk": _bulk}
    for shape in shapes:
        make_case = cache(partial(make, shape, device.torch_device))
        for kind, check in kinds.items():
            if kind != "parity" and shape not in ((*RING, *ONE_CLUSTER) if kind == "bulk" else SMALL):
                continue
            for backend in device.backends:
                if kind == "bulk" and backend != "cuda":
                    continue
                yield f"{kind} {backend} {named(shape)}", lambda c=check, m=make_case, b=backend: c(m(), b, device)  # type: ignore[misc]
    for size, dtype in product((100, 300), (torch.float32, torch.float64)):
        yield f"cholesky {size} {dtype}", partial(_cholesky, size, dtype, device)


def named(shape: Shape) -> str:
    """A shape in words."""
    norm, tokens, hidden, rank, dtype, map_dtype, residual, maps = shape
    kinds = f"{dtype_name(dtype)} {dtype_name(map_dtype)}{' residual' if residual else ''}"
    return f"{norm} {tokens} {hidden} {'dense' if rank is None else rank} {kinds} {maps} maps"


def run_checks(
    device: Device, checks: Iterator[tuple[str, Check]], journal: Journal, record: Callable[[str, str], None]
) -> int:
    """Run what the journal does not have yet; ``record`` gets (name, what is wrong or empty). Returns how many failed.

    Raises:
        LostDeviceError: the device cannot be used by this process any more; the check is recorded as failed.
    """
    failed = 0
    for name, check in checks:
        if name in journal.finished:
            continue
        if name in journal.culprits:
            record(name, "crashed or hung in an earlier attempt")
            journal.finish(name)
            failed += 1
            continue
        journal.begin(name)
        try:
            wrong = check()
            device.synchronize()
        except Exception as error:
            wrong = f"{type(error).__name__}: {error}"
        record(name, wrong)
        journal.finish(name)
        failed += bool(wrong)
        if wrong and not device.alive():
            raise LostDeviceError(f"{name}: {wrong}")
    return failed


def _tune_nothing() -> None:
    """Take the first tuning. Bits do not depend on it, and trying them all would compile for minutes."""
    from incline_fast.ops.triton_kernels._decode import decode

    decode.configs = decode.configs[:1]


def main(arguments: argparse.Namespace, device: Device) -> int:
    """Returns the exit status: 1 if a check has failed."""
    if arguments.backend:
        device.backends = tuple(arguments.backend)
    if "triton" in device.backends:
        _tune_nothing()

    def record(name: str, wrong: str) -> None:
        print(f"{'FAILED' if wrong else 'ok    '} {name} {wrong}".rstrip(), flush=True)
        row = {"stage": arguments.stage, "check": name, "result": "failed" if wrong else "passed", "reason": wrong}
        append(arguments.output / "checks.csv", COLUMNS, [{**row, "device": device.name, "commit": commit()}])

    shapes = SMALL if arguments.small else LARGE
    journal = Journal(arguments.work / f"{arguments.stage}.journal")
    failed = run_checks(device, all_checks(device, shapes), journal, record)
    print(f"{failed} checks failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a few shapes")
    parser.add_argument("--stage", default="checks", help="name in the tables, and of the journal")
    parser.add_argument("--backend", action="append", help="cuda or triton; the default is both")
    add_arguments(parser)
    raise SystemExit(run_as_stage(parser.parse_args(), main))
