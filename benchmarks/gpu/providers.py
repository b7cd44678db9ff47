"""Ways to compute a problem on a GPU: our backends, the vendor's pairs, compiled graphs, and the parts of a pair.

A pair is the vendor's matrix product and one kernel that adds and normalises, which is what a careful user has without
us. Parts are timed in the same way as everything else and tell where a pair's time goes: an empty kernel, a pure read
of the map's bytes, the product alone, the norm alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.data import DeviceData
from benchmarks.gpu.norms import ADD_NORMS, compiled_norm
from benchmarks.served import RING_TOKENS, RING_TOKENS_WITH_FAST_MEMORY, in_one_cluster, in_ring
from incline_fast import ops
from incline_fast.bench.problems import ALPHA, EPS, Problem
from incline_fast.bench.providers import PROVIDERS as PLAIN
from incline_fast.bench.providers import Run
from incline_fast.bench.timing import largest_error
from incline_fast.ops._arguments import decode_limit

__all__ = ["GPU_PROVIDERS", "GpuProvider", "ours", "set_bulk_copies"]

Results = tuple[Tensor, ...]


def always(problem: Problem) -> str:
    """Every problem can be computed."""
    return ""


def check_op(data: DeviceData, results: Results) -> float:
    """Largest error of (y, r').

    Raises:
        ArithmeticError: it is something else.
    """
    return largest_error(results, data.expected(), data.problem)


@dataclass(frozen=True)
class GpuProvider:
    """One way to compute a problem, or a part of it.

    Attributes:
        make: binds a problem's tensors and gives ``run(x, copy)``; what is slow happens here.
        unfit: why a problem cannot be computed this way, empty if it can.
        check: largest error of what ``run`` gave; raises ArithmeticError if it is wrong.
        kind: "ours", "rival", or "part" for what computes less than the op.
    """

    make: Callable[[DeviceData], Run]
    unfit: Callable[[Problem], str] = always
    check: Callable[[DeviceData, Results], float] = check_op
    kind: str = "rival"


def ours(backend: str) -> GpuProvider:
    """The in-place op of one backend, as the layers call it."""

    def make(data: DeviceData) -> Run:
        weight, norm_bias, maps = data.weight, data.norm_bias, data.maps
        options: dict[str, Any] = {"bias": data.bias, "alpha": ALPHA, "eps": EPS, "backend": backend}
        if norm_bias is None:
            return lambda x, i: (ops.affine_rms_norm_(x, weight, maps[i], **options), x)
        return lambda x, i: (ops.affine_layer_norm_(x, weight, norm_bias, maps[i], **options), x)

    return GpuProvider(make, kind="ours")


def _while_set(set_option: Callable[[bool], None], backend: str) -> Callable[[DeviceData], Run]:
    """The in-place op with one of the process's settings on: with ``set_batch_invariant`` the decode kernels keep calls
    that torch's product would take (is the threshold right?), with ``set_programmatic_launch`` launches overlap;
    without bulk copies the kernels of older GPUs serve.

    A graph keeps the launches as they were captured, so that no provider's setting reaches another one's graph.
    """

    def make(data: DeviceData) -> Run:
        run = ours(backend).make(data)

        def with_option(x: Tensor, i: int) -> Results:
            set_option(True)
            try:
                return run(x, i)
            finally:
                set_option(False)

        return with_option

    return make


def _is_sm_90() -> bool:
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def _no_overlap(problem: Problem) -> str:
    return "" if _is_sm_90() else "programmatic launches need a GPU of compute capability 9.0 or later"


def _no_bulk_copies(problem: Problem) -> str:
    if not in_ring(problem) and not in_one_cluster(problem):
        return (
            f"bulk copies serve dense maps for up to {RING_TOKENS} tokens of 16 bits, widths that are multiples of 64, "
            "and small maps of low rank"
        )
    return "" if _is_sm_90() else "bulk copies need a GPU of compute capability 9.0 or later"


def set_bulk_copies(enabled: bool) -> None:
    """Whether the CUDA kernels with bulk copies serve what they can, as at first."""
    torch.ops.incline_fast.set_bulk_copies(enabled)


def _always_decoded(problem: Problem) -> str:
    if _is_sm_90() and in_one_cluster(problem):
        return "the decode kernels serve every call with such a map"
    limit = decode_limit(problem.hidden_size, problem.rank or 0)
    if _is_sm_90() and in_ring(problem):
        limit = max(limit, RING_TOKENS_WITH_FAST_MEMORY)
    few = problem.num_tokens <= limit
    return f"up to {limit} tokens the decode kernels serve every call with such a map" if few else ""


def _pair(norm: str) -> GpuProvider:
    """cuBLAS with the bias in its epilogue, then a kernel that adds the residual and normalises."""

    def make(data: DeviceData) -> Run:
        add_norm, weight, norm_bias, maps = ADD_NORMS[norm].make(), data.weight, data.norm_bias, data.weights.linear
        bias = ALPHA * data.bias

        def run(x: Tensor, i: int) -> Results:
            down, up = maps[i]
            change = torch.addmm(bias, x if down is None else F.linear(x, down), up.T, alpha=ALPHA)
            return add_norm(change, x, weight, norm_bias)

        return run

    return GpuProvider(make, ADD_NORMS[norm].unfit)


def _residual_in_gemm(data: DeviceData) -> Run:
    """The residual is what the product is added to (cuBLAS's C), the norm's kernel adds the bias."""
    norm, maps = compiled_norm(), data.weights.linear
    weight, norm_bias, bias = data.weight, data.norm_bias, ALPHA * data.bias

    def run(x: Tensor, i: int) -> Results:
        down, up = maps[i]
        return norm(
            torch.addmm(x, x if down is None else F.linear(x, down), up.T, alpha=ALPHA), bias, weight, norm_bias
        )

    return run


def _matrix_vector(data: DeviceData) -> Run:
    """The same for one token with matrix-vector products."""
    norm, maps = compiled_norm(), data.weights.linear
    weight, norm_bias, bias = data.weight, data.norm_bias, ALPHA * data.bias

    def run(x: Tensor, i: int) -> Results:
        down, up = maps[i]
        row = x[0]
        edited = torch.addmv(row, up, row if down is None else torch.mv(down, row), alpha=ALPHA)
        return norm(edited.unsqueeze(0), bias, weight, norm_bias)

    return run


def _folded(data: DeviceData) -> Run:
    """``I + alpha W`` formed beforehand: reads as much as a dense map, and rounds a small alpha W away."""
    norm, maps = compiled_norm(), data.weights.folded
    weight, norm_bias, bias, zero = data.weight, data.norm_bias, ALPHA * data.bias, torch.zeros_like(data.bias)
    return lambda x, i: norm(F.linear(x, maps[i], bias), zero, weight, norm_bias)


def _graph(**options: Any) -> Callable[[DeviceData], Run]:
    """torch.compile of the plain calls; the weights are arguments."""

    def make(data: DeviceData) -> Run:
        weight, norm_bias, bias, maps = data.weight, data.norm_bias, data.bias, data.weights.linear

        def plain(x: Tensor, down: Tensor | None, up: Tensor) -> Results:
            edited = torch.add(x, F.linear(x if down is None else F.linear(x, down), up, bias), alpha=ALPHA)
            if norm_bias is None:
                return F.rms_norm(edited, x.shape[-1:], weight, EPS), edited
            return F.layer_norm(edited, x.shape[-1:], weight, norm_bias, EPS), edited

        graph = torch.compile(plain, dynamic=False, fullgraph=True, **options)
        return lambda x, i: tuple(graph(x, *maps[i]))

    return make


def _empty(data: DeviceData) -> Run:
    one = torch.zeros(1, device=data.x.device)
    return lambda x, i: (one.add_(1),)


def _read(data: DeviceData) -> Run:
    from benchmarks.gpu.kernels import read

    return lambda x, i: tuple(read(part) for part in data.weights.linear[i] if part is not None)


def _check_read(data: DeviceData, results: Results) -> float:
    parts = [part for part in data.weights.linear[0] if part is not None]
    for part, sums in zip(parts, results, strict=True):
        wanted = part.contiguous().view(-1).view(torch.int32).sum(dtype=torch.int64).item()
        if (int(sums.sum(dtype=torch.int64).item()) - int(wanted)) % (1 << 32):
            raise ArithmeticError("the sum of the words that were read is wrong; nothing was timed")
    return 0.0


def _read_unfit(problem: Problem) -> str:
    return "" if find_spec("triton") and torch.cuda.is_available() else "reads with a Triton kernel, which needs a GPU"


def _product(data: DeviceData) -> Run:
    maps, bias = data.weights.linear, ALPHA * data.bias

    def run(x: Tensor, i: int) -> Results:
        down, up = maps[i]
        return (torch.addmm(bias, x if down is None else F.linear(x, down), up.T, alpha=ALPHA),)

    return run


def _check_product(data: DeviceData, results: Results) -> float:
    return largest_error(results, (ALPHA * (data.mapped() + data.bias.double()),), data.problem)


def _matrix_vector_alone(data: DeviceData) -> Run:
    maps = data.weights.linear

    def run(x: Tensor, i: int) -> Results:
        down, up = maps[i]
        return (torch.mv(up, x[0] if down is None else torch.mv(down, x[0])).unsqueeze(0),)

    return run


def _check_mapped(data: DeviceData, results: Results) -> float:
    return largest_error(results, (data.mapped(),), data.problem)


def _norm_alone(data: DeviceData) -> Run:
    (change,) = _product(data)(data.x, 0)
    add_norm = ADD_NORMS["compiled"].make()
    return lambda x, i: add_norm(change, x, data.weight, data.norm_bias)


def _one_token(problem: Problem) -> str:
    return "" if problem.num_tokens == 1 else "is for one token"


def _plain(name: str) -> GpuProvider:
    return GpuProvider(lambda data: PLAIN[name].make(data))


def _no_pdl(problem: Problem) -> str:
    found = hasattr(torch._inductor.config.triton, "enable_pdl")
    return "" if found else f"torch {torch.__version__} does not know triton.enable_pdl"


GPU_PROVIDERS: dict[str, GpuProvider] = {
    "cuda": ours("cuda"),
    "triton": ours("triton"),
    "cuda, decode kernels": GpuProvider(_while_set(ops.set_batch_invariant, "cuda"), _always_decoded),
    "cuda, PDL": GpuProvider(_while_set(ops.set_programmatic_launch, "cuda"), _no_overlap),
    "cuda, no bulk copies": GpuProvider(_while_set(lambda on: set_bulk_copies(not on), "cuda"), _no_bulk_copies),
    "triton, PDL": GpuProvider(_while_set(ops.set_programmatic_launch, "triton"), _no_overlap),
    **{f"cublas+{norm}": _pair(norm) for norm in ADD_NORMS},
    "cublas, residual as C": GpuProvider(_residual_in_gemm),
    "addmv": GpuProvider(_matrix_vector, _one_token),
    "folded (other rounding)": GpuProvider(_folded),
    "eager": _plain("eager"),
    "hook": _plain("hook"),
    "compile": GpuProvider(_graph()),
    "compile, max-autotune": GpuProvider(_graph(mode="max-autotune-no-cudagraphs")),
    "compile, max-autotune, PDL": GpuProvider(
        _graph(options={"max_autotune": True, "coordinate_descent_tuning": True, "triton.enable_pdl": True}), _no_pdl
    ),
    "empty kernel": GpuProvider(_empty, check=lambda data, results: 0.0, kind="part"),
    "read alone": GpuProvider(_read, _read_unfit, _check_read, "part"),
    "product alone": GpuProvider(_product, check=_check_product, kind="part"),
    "mv alone": GpuProvider(_matrix_vector_alone, _one_token, _check_mapped, "part"),
    "norm alone": GpuProvider(_norm_alone, kind="part"),
}
"""All providers by name."""
