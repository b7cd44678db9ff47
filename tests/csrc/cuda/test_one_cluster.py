"""The kernel for a map of low rank within one cluster: the bits of the kernel without, in both emulators."""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import pytest
import torch
from cuda.decode_cases import BF16, FP16, FP32, INT8, UNIFORM, both_equal
from cuda.launcher import launches, library, prepare, run_fibers, run_ptx, source_of
from cuda.sm_90 import names, same_bits_by
from op_cases import Case, make

from benchmarks.decode_model import GPUS
from benchmarks.gpu import checks
from benchmarks.served import in_one_cluster, ring_limit
from emulator.errors import EmulationError
from incline_fast.bench.problems import Problem

pytestmark = pytest.mark.gpu_emulated

# The kernel takes rows of the map's type, bf16 for int8.
KINDS = {kind: dtypes for kind, dtypes in UNIFORM.items() if kind != "fp16 x int8"}
by_kind = pytest.mark.parametrize("kind", KINDS)
# Blocks without a piece and without a tile; a rank of several steps and no whole tile; a shorter last piece; two pieces
# a block; the ends of what is served.
SHAPES = ((64, 16), (640, 48), (1600, 112), (2048, 128), (4096, 64), (8192, 32))


def cluster_case(kind: str, rows: int, hidden: int, rank: int, **options: Any) -> Case:
    x, map_dtype, residual = KINDS[kind]
    norm = ("rms", "layer")[rows % 2]
    options = {"alpha": 0.75, "bias": rows % 3 != 0, "weight_offset": float(rows % 2), **options}
    return make(norm, hidden, (rows,), rank=rank, dtype=x, map_dtype=map_dtype, residual_dtype=residual, **options)


def check(case: Case, *, seed: int = 0, resident: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Right, by one launch of one cluster, with the bits of the other kernel."""
    (launch,) = launches(prepare(case, bulk_copies=True))
    assert launch.cluster == launch.grid[0] == 16
    return same_bits_by("one_cluster_kernel", case, seed=seed, resident=resident)


@by_kind
@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_the_bits_of_the_other_kernel(kind: str, rows: int) -> None:
    for number, (hidden, rank) in enumerate(SHAPES[:3]):
        case = cluster_case(kind, rows, hidden, rank)
        first = check(case, seed=(rows + number) % 3, resident=1)
        again = run_fibers(prepare(case, in_place=True, bulk_copies=True), seed=7 - rows, resident=20)
        assert both_equal(again, first)


@by_kind
@pytest.mark.parametrize("shape", SHAPES[3:])
def test_as_large_as_it_goes(kind: str, shape: tuple[int, int]) -> None:
    """With strengths of rows."""
    alpha, beta = torch.linspace(-1, 1, 8), torch.linspace(0.5, 1, 8, dtype=BF16)
    check(cluster_case(kind, 8, *shape, alpha=alpha, beta=beta))


@pytest.mark.parametrize("rank", [8, 24, 120])
def test_ranks_that_fill_no_tile(rank: int) -> None:
    """What of a tile of down r lies beyond the rank is zeros, and not what was in shared memory."""
    check(cluster_case("bf16", 3, 576, rank))


def test_minus_zero() -> None:
    """The sums of the other kernel's idle warps make 0 of -0; an RMS norm keeps the difference."""
    case = cluster_case("bf16", 1, 128, 16, beta=-1.0, bias=False)
    assert case.map.down is not None
    zeros = case.but(x=torch.zeros_like(case.x))
    check(zeros)
    case.map.down.zero_()
    check(zeros)


def test_what_a_gpu_is_checked_with() -> None:
    """The shapes of benchmarks.gpu.checks that are there for this kernel are served by it."""
    for norm, tokens, hidden, rank, dtype, map_dtype, residual, num_maps in checks.ONE_CLUSTER:
        assert num_maps == 1
        residual_dtype = dtype if residual else None
        case = make(norm, hidden, (tokens,), rank=rank, dtype=dtype, map_dtype=map_dtype, residual_dtype=residual_dtype)
        assert "one_cluster_kernel" in names(case)


H100_MEMORY = (2_619_000, 5120)  # kHz, bits
H200_MEMORY = (3_201_000, 6144)


@pytest.mark.parametrize(
    ("refused", "memory", "wanted"),
    [
        (False, H100_MEMORY, [1, 1, 16]),
        (True, H200_MEMORY, [1, 0, 9]),
        (False, (0, 0), [1, 1, 9]),
    ],
)
def test_what_a_device_is_asked(refused: bool, memory: tuple[int, int], wanted: list[int]) -> None:
    """Where an answer is an error, the other kernels serve, and no later call finds an error that is not its own."""
    fibers = library()
    set_memory = fibers.function("cuda_on_cpu_set_memory", ctypes.c_int, ctypes.c_int)
    refuse = fibers.function("cuda_on_cpu_refuse_clusters", ctypes.c_bool)
    features, problems = (ctypes.c_int * 3)(), []

    def ask() -> None:
        problems.append(fibers.function("cuda_features", ctypes.c_void_p, restype=ctypes.c_char_p)(features))
        plain = cluster_case("bf16", 1, 128, 16)
        problems.append(both_equal(run_fibers(prepare(plain)), run_fibers(prepare(plain))))

    refuse(refused)
    set_memory(*memory)
    thread = threading.Thread(target=ask)  # which has not asked yet
    thread.start()
    thread.join()
    refuse(False)
    set_memory(*H100_MEMORY)
    assert problems == [None, True]
    assert list(features) == wanted
    for name, (khz, bits) in (("H100", H100_MEMORY), ("H200", H200_MEMORY)):
        assert 2e3 * khz * bits / 8 / 1e12 == pytest.approx(GPUS[name].bandwidth, rel=0.03)
        assert ring_limit(GPUS[name].bandwidth) == (16 if name == "H100" else 9)


@pytest.mark.parametrize(("dtype", "map_dtype"), [(BF16, BF16), (BF16, INT8), (FP16, INT8), (BF16, FP16), (FP32, FP32)])
def test_the_model_knows_which_shapes_are_served(dtype: torch.dtype, map_dtype: torch.dtype) -> None:
    for hidden in (64, 1024, 2560, 4096, 8192, 8256):
        for rank in (16, 64, 96, 128, 144):
            for rows in (1, 8, 9):
                case = make("rms", hidden, (rows,), rank=rank, dtype=dtype, map_dtype=map_dtype)
                problem = Problem("rms", rows, hidden, rank, dtype, map_dtype)
                assert ("one_cluster_kernel" in names(case)) == in_one_cluster(problem), problem


@pytest.mark.parametrize("kind", ["bf16", "bf16+bf16", "bf16 x int8"])
def test_no_data_race(kind: str) -> None:
    for rows, hidden, rank in ((1, 640, 32), (8, 1088, 128)):
        case = cluster_case(kind, rows, hidden, rank)
        call = prepare(case, sanitizer="races", bulk_copies=True)
        found = run_fibers(call, seed=rows, resident=16, sanitizer="races")
        assert both_equal(run_fibers(prepare(case)), found)


def test_neither_workspace_nor_counters_are_touched() -> None:
    call = prepare(cluster_case("bf16", 3, 640, 32), bulk_copies=True)
    call.workspace.fill_(7.0)
    call.tickets.fill_(5)
    with pytest.raises(AssertionError, match="counter"):
        run_fibers(call)
    assert (call.workspace == 7).all()
    assert (call.tickets == 5).all()


def test_calls_that_the_other_kernels_serve() -> None:
    """More rows, several maps, other types, widths, places and ranks."""
    plain = cluster_case("bf16", 2, 128, 32)
    shifted = torch.empty(257, dtype=BF16)[1:].view(2, 128).copy_(plain.x)
    row_map = torch.tensor([0, -1], dtype=torch.int32)
    others = {
        "9 rows": cluster_case("bf16", 9, 128, 32),
        "row_map": plain.but(row_map=row_map),
        "rank 136": make("rms", 256, (2,), rank=136, dtype=BF16),
        "rank 36": make("rms", 128, (2,), rank=36, dtype=BF16),
        "int8, rank 40": make("rms", 128, (2,), rank=40, dtype=BF16, map_dtype=INT8),
        "width": make("rms", 96, (2,), rank=32, dtype=BF16),
        "fp32": make("rms", 128, (2,), rank=32, dtype=FP32),
        "fp32 residual": make("rms", 128, (2,), rank=32, dtype=BF16, residual_dtype=FP32),
        "fp32 weight": make("rms", 128, (2,), rank=32, dtype=BF16, vector_dtype=FP32),
        "fp16 x int8": make("rms", 128, (2,), rank=32, dtype=FP16, map_dtype=INT8),
        "misaligned": plain.but(x=shifted),
    }
    for name, case in others.items():
        assert "one_cluster_kernel" not in names(case), name
        assert both_equal(run_fibers(prepare(case, bulk_copies=True)), run_fibers(prepare(case)))


def test_strided_rows() -> None:
    """Any stride between rows that keeps them aligned."""
    case = cluster_case("bf16+bf16", 3, 256, 48)
    apart = torch.full((3, 320), torch.nan, dtype=BF16)[:, :256].copy_(case.x)
    again = case.but(x=apart)
    assert both_equal(check(again), check(case))


@by_kind
@pytest.mark.parametrize("rows", [1, 8])
def test_ptx_is_the_fibers_bit_for_bit(kind: str, rows: int) -> None:
    """Also where nothing but the map may be touched before the launch ahead has ended."""
    for hidden, rank, programmatic in ((640, 48, False), (1088, 128, True)):
        case = cluster_case(kind, rows, hidden, rank)
        call = prepare(case, bulk_copies=True, programmatic=programmatic)
        y, edited, report = run_ptx(call, "sm_90")
        assert both_equal((y, edited), run_fibers(prepare(case)))
        assert report.worst_bank_conflict <= 2, report


def test_ptx_of_the_largest() -> None:
    for hidden, rank in ((4096, 64), (8192, 32)):
        case = cluster_case("bf16+bf16", 2, hidden, rank)
        y, edited, _ = run_ptx(prepare(case, bulk_copies=True, in_place=True), "sm_90", seed=3)
        assert both_equal((y, edited), run_fibers(prepare(case)))


def test_the_map_is_requested_before_the_dependency_wait() -> None:
    (launch,) = launches(prepare(cluster_case("bf16", 1, 128, 16), bulk_copies=True, programmatic=True))
    kernel = launch.kernel.decode()
    text = source_of(kernel, "sm_90").split(f".entry {kernel}(")[1].split(".entry ")[0]
    assert text.split("griddepcontrol.wait")[0].count("cp.async.bulk.shared::cluster.global") == 2


def test_older_architectures_trap() -> None:
    """The launcher does not choose the kernel there; were it launched, it would not compute something else."""
    case = cluster_case("bf16", 1, 128, 16)
    with pytest.raises(EmulationError, match="trap"):
        run_ptx(prepare(case, bulk_copies=True), "sm_80")
