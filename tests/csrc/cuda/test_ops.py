"""The CUDA ops themselves, from torch's dispatcher to the kernels, with fibers in the place of a GPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda.decode_cases import BF16, FP16, FP32, INT8, KINDS, both_equal, decode_case
from cuda.launcher import SOURCES, like, prepare, run_fibers
from op_cases import Case, make
from tolerances import assert_close
from torch import Tensor
from torch.utils.cpp_extension import include_paths

from emulator.build import load_fibers
from incline_fast.maps import AffineMap
from incline_fast.ops import _arguments
from incline_fast.ops._arguments import decode_limit, op_tail
from incline_fast.ops._extension import EXTENSION
from incline_fast.packing import pack

pytestmark = [
    pytest.mark.gpu_emulated,
    pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation: there are no schemas"),
]
LIBRARIES: list[Any] = []


@cache
def emulated() -> Any:
    """The library's ops, with the schemas of the real ones."""
    ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"), mode=ctypes.RTLD_GLOBAL)
    before = os.environ.get("CPLUS_INCLUDE_PATH")
    os.environ["CPLUS_INCLUDE_PATH"] = os.pathsep.join(include_paths())  # as system headers: not ours to warn about
    try:
        LIBRARIES.append(load_fibers([*SOURCES, Path(__file__).with_name("emulated_ops.cpp")]))
    finally:
        if before is None:
            del os.environ["CPLUS_INCLUDE_PATH"]
        else:
            os.environ["CPLUS_INCLUDE_PATH"] = before
    return torch.ops.incline_fast_emulated


def tail_of(case: Case) -> tuple[Any, ...]:
    options = {"bias": None, "alpha": 1.0, "beta": 1.0, "row_map": None, "weight_offset": 0.0, **case.options}
    options.pop("residual", None)
    options.setdefault("eps", 1e-5 if case.norm == "layer" else 1e-6)
    vectors = (case.weight,) if case.norm == "rms" else (case.weight, case.norm_bias)
    return *vectors, *op_tail("cuda", case.map, **options)


def functional(case: Case) -> tuple[Tensor, Tensor]:
    op = getattr(emulated(), f"affine_{case.norm}_norm")
    result: tuple[Tensor, Tensor] = op(case.x, case.options.get("residual"), *tail_of(case))
    return result


def in_place(case: Case) -> tuple[Tensor, Tensor]:
    residual = case.options.get("residual")
    unedited = case.x if residual is None else residual
    written = like(unedited).copy_(unedited)
    y = torch.empty_like(case.x) if residual is None else like(case.x).copy_(case.x)
    getattr(emulated(), f"affine_{case.norm}_norm_")(y, written, residual is not None, *tail_of(case))
    return y, written


def check(case: Case) -> tuple[Tensor, Tensor]:
    y, edited = functional(case)
    length = case.x.shape[-1]
    assert_close(edited, case.expected()[1], length)
    assert_close(y, case.normed(edited), length)
    assert both_equal(in_place(case), (y, edited))
    return y, edited


@contextmanager
def decode_kernels_alone() -> Iterator[None]:
    """No call is left to torch's product."""
    emulated().set_batch_invariant(True)
    try:
        yield
    finally:
        emulated().set_batch_invariant(False)


@pytest.mark.parametrize("low_rank", [False, True], ids=["dense", "low rank"])
@pytest.mark.parametrize("kind", KINDS)
def test_decode(kind: str, low_rank: bool) -> None:
    """Through the dispatcher as from the launcher; a rank filled up with zeros has the bits of the plain one."""
    case = decode_case(kind, low_rank, 4)
    with decode_kernels_alone():
        assert both_equal(check(case), run_fibers(prepare(case)))


def test_programmatic_launches_have_the_same_bits() -> None:
    for rows, rank in ((1, None), (3, 20), (9, None)):  # decode, low rank, after a GEMM
        case = make("rms", 48, (rows,), rank=rank, dtype=BF16)
        usual = functional(case)
        emulated().set_programmatic_launch(True)
        try:
            assert both_equal(check(case), usual)
        finally:
            emulated().set_programmatic_launch(False)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("rank", [None, 20])
def test_many_rows_of_one_map_take_a_gemm(rank: int | None, norm: str) -> None:
    """Every dtype that the GEMM serves; rows without a map are normalised in the same launch."""
    for half, dtype, residual in ((35, FP32, None), (5, FP32, FP32), (35, BF16, BF16), (5, FP16, None)):
        row_map = torch.arange(2 * half, dtype=torch.int32) % 3 - 1
        case = make(norm, 48, (2, half), rank=rank, dtype=dtype, residual_dtype=residual, alpha=0.25)
        check(case.but(row_map=row_map.clamp(max=0)))


def test_many_rows_that_no_gemm_serves() -> None:
    """Several maps, int8 maps, or a residual of another type: the decode kernels, 64 rows a launch."""
    row_map = torch.arange(150, dtype=torch.int32) % 4 - 1
    check(make("rms", 40, (150,), dtype=BF16, num_maps=3, row_map=row_map))
    check(make("layer", 40, (70,), rank=9, dtype=BF16, map_dtype=INT8))
    check(make("layer", 40, (70,), dtype=BF16, residual_dtype=FP32))


def test_no_rows() -> None:
    y, edited = functional(make("rms", 32, (0, 5), dtype=BF16, residual_dtype=FP32))
    assert y.shape == edited.shape == (0, 5, 32)
    assert (y.dtype, edited.dtype) == (BF16, FP32)


def refused(case: Case, message: str) -> None:
    for form in (functional, in_place):
        with pytest.raises((ValueError, RuntimeError), match=message):
            form(case)


def test_errors_name_the_argument() -> None:
    case = make("rms", 32, (3,), dtype=FP32)
    refused(case.double(), "x has dtype float64; allowed on CUDA|up has dtype float64; allowed on CUDA")
    refused(case.but(weight=torch.ones(31)), r"weight has shape \(31,\); expected \(32,\), the hidden size")
    refused(case.but(row_map=torch.zeros(3, dtype=torch.int64)), "row_map has dtype int64; allowed: int32")
    refused(case.but(x=case.x.to(torch.int32)), "x has dtype int32|y has dtype int32|residual has dtype int32")
    tail = list(tail_of(case))
    tail[2] = pack(case.map.up)
    with pytest.raises((ValueError, RuntimeError), match="up is packed in the CPU's panel layout; on CUDA pass"):
        emulated().affine_rms_norm(case.x, None, *tail)
    tail[2] = case.map.up.mT
    with pytest.raises((ValueError, RuntimeError), match=r"up is not contiguous; pass up.contiguous\(\)"):
        emulated().affine_rms_norm(case.x, None, *tail)


def test_a_row_map_past_the_last_map_is_loud() -> None:
    """Its values are on the device: not an error before the launch, but NaN in the row and in no other."""
    for rows, num_maps in ((3, 1), (70, 1), (70, 3)):  # decode, after a GEMM, decode in several launches
        row_map = torch.arange(rows, dtype=torch.int32) % 3 - 1
        row_map[1] = 7
        y, _ = functional(make("rms", 32, (rows,), dtype=FP32, num_maps=num_maps, row_map=row_map))
        assert torch.equal(y.isnan().all(1), row_map >= num_maps)
        assert torch.equal(y.isnan().any(1), row_map >= num_maps)


def test_a_row_map_past_the_last_map_is_an_error_where_it_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make("rms", 32, (3,), dtype=FP32, row_map=torch.tensor([0, 7, -1], dtype=torch.int32))
    monkeypatch.setattr(_arguments, "CHECK_ON_GPU", True)
    refused(case, "row_map holds 7; allowed: below 1, the number of maps")


def test_the_library_and_python_agree_where_torch_multiplies() -> None:
    for hidden in (16, 2048, 2064, 4096, 4112, 16384):
        for rank in (0, 1, 63, 64, 128, 129, 176, 177, 384, 385, 512, 513, 1024, 1025):
            assert emulated().decode_rows(hidden, rank) == decode_limit(hidden, rank)


@pytest.mark.parametrize("rank", [None, 20])
def test_batch_invariant(rank: int | None) -> None:
    """A row's bits from 1 to 129 tokens, whose product would otherwise be torch's from a few on."""
    case = make("layer", 40, (129,), rank=rank, dtype=BF16, alpha=0.5)
    limit = decode_limit(40, rank or 0)
    sizes = (1, limit, limit + 1, 64, 65, 129)
    usual = {rows: functional(case.but(x=case.x[:rows])) for rows in sizes}
    with decode_kernels_alone():
        results = {rows: functional(case.but(x=case.x[:rows])) for rows in sizes}
    for rows, result in results.items():
        assert both_equal(result, tuple(whole[:rows] for whole in results[129]))
        assert both_equal(result, usual[rows]) == (rows <= limit)
    assert both_equal(functional(case), usual[129])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_cholesky(dtype: torch.dtype) -> None:
    X = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = (X @ X.mT + 40 * torch.eye(40, dtype=torch.float64)).to(dtype)
    wanted = torch.linalg.cholesky(A.double())
    L, info = emulated().cholesky_block(A)
    stack, inverse, pivots = A.clone(), torch.empty_like(A), torch.zeros(3, dtype=torch.int32)
    emulated().cholesky_block_(stack, inverse, pivots, 0)
    assert not info.any()
    assert torch.equal(stack, L)
    torch.testing.assert_close(L.double(), wanted, rtol=0, atol=1e-5 if dtype is torch.float32 else 1e-14)
    torch.testing.assert_close(emulated().triangular_inverse(L), inverse, rtol=1e-5, atol=1e-7)
    with pytest.raises((ValueError, RuntimeError), match=r"A has shape \(129, 129\); .* with n <= 128"):
        emulated().cholesky_block(torch.eye(129, dtype=dtype))


def test_maps_are_what_the_layers_pass() -> None:
    """AffineMap.aligned() keeps the numbers, so that a rank of 20 may be given to the op as it is, too."""
    case = make("rms", 32, (3,), rank=20, dtype=BF16)
    down, up, *_ = case.map.aligned()
    assert both_equal(functional(case), functional(case.but(map=AffineMap(down, up))))
