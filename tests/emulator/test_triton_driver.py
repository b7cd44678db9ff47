"""Triton's compiled kernels on CPU tensors: right numbers, faults found, autotuning and operators work."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tolerances import assert_close
from torch import Tensor

triton = pytest.importorskip("triton")

import triton_samples as kernels  # noqa: E402

from emulator.ptx import PTXError  # noqa: E402
from emulator.triton_driver import emulated  # noqa: E402

pytestmark = pytest.mark.gpu_emulated
ARCHITECTURES = [80, 90]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 96, 769])
def test_reduction(arch: int, dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, size).to(dtype), torch.randn(size)
    y = torch.full_like(x, float("nan"))
    with emulated(arch) as launches:
        kernels.row_norm[(3,)](x, weight, y, size, 1e-6, BLOCK=1024)
    assert_close(y, F.rms_norm(x.double(), (size,), weight.double(), 1e-6), size)
    assert [(launch.name, launch.grid) for launch in launches] == [("row_norm", (3, 1, 1))]


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int8])
def test_tensor_cores(arch: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    if dtype == torch.int8:
        a, b = (torch.randint(-128, 128, size, dtype=dtype) for size in ((40, 70), (70, 33)))
    else:
        a, b = torch.randn(40, 70).to(dtype), torch.randn(70, 33).to(dtype)
    c = torch.zeros(40, 33, dtype=torch.int32 if dtype == torch.int8 else torch.float32)
    with emulated(arch) as launches:
        kernels.product[(2, 2)](a, b, c, 40, 33, 70, M=32, N=32, K=32)
    expected = a.double() @ b.double()
    if dtype == torch.float32:
        torch.testing.assert_close(c.double(), expected, rtol=1e-2, atol=2e-2)  # tf32 keeps 11 bits of a factor
    elif dtype == torch.int8:
        assert torch.equal(c.double(), expected)
    else:
        assert_close(c, expected, 70)
    assert launches[0].report.instructions["mma"] > 0


@pytest.mark.parametrize("seed", range(3))
def test_last_program_finishes(seed: int) -> None:
    torch.manual_seed(0)
    x, parts, total = torch.randn(8 * 128), torch.zeros(8), torch.zeros(1)
    counter = torch.zeros(1, dtype=torch.int32)
    with emulated(80, seed=seed):
        for _ in range(2):  # the counter has been reset
            kernels.last_program_sums[(8,)](x, parts, counter, total, PROGRAMS=8, BLOCK=128, SEM="acq_rel")
            assert_close(total, x.double().sum(0, keepdim=True), 1024)
            assert counter.item() == 0


@pytest.mark.parametrize("sem", ["relaxed", "acquire", "release"])
def test_dropped_fence_is_a_race(sem: str) -> None:
    x, parts, total = torch.randn(8 * 128), torch.zeros(8), torch.zeros(1)
    counter = torch.zeros(1, dtype=torch.int32)
    with emulated(80), pytest.raises(PTXError, match=r"race on global memory: block \d+ thread \d+ comes"):
        kernels.last_program_sums[(8,)](x, parts, counter, total, PROGRAMS=8, BLOCK=128, SEM=sem)


def test_sort_and_scan() -> None:
    torch.manual_seed(0)
    x = torch.randn(256)
    sorted_x, scanned = torch.zeros(256), torch.zeros(256)
    with emulated(80):
        kernels.sort_and_scan[(1,)](x, sorted_x, scanned, BLOCK=256)
    assert torch.equal(sorted_x, x.sort().values)
    assert_close(scanned, x.double().cumsum(0), 256)


def test_forgotten_mask_is_out_of_bounds_with_its_line() -> None:
    x, y = torch.zeros(100), torch.zeros(128)
    with emulated(80), pytest.raises(PTXError, match=r"out of bounds .* PTX line \d+ \(triton_samples\.py:\d+\)"):
        kernels.copy_beyond[(1,)](x, y, 100, BLOCK=128)


def test_neighbouring_memory_of_a_view_is_out_of_bounds() -> None:
    storage, y = torch.zeros(256), torch.zeros(128)
    with emulated(80):
        kernels.copy_beyond[(1,)](storage[:128], y, 128, BLOCK=128)
        with pytest.raises(PTXError, match="out of bounds"):
            kernels.copy_beyond[(1,)](storage[:96], y, 128, BLOCK=128)


def test_empty_grid_launches_nothing() -> None:
    with emulated(80) as launches:
        kernels.row_norm[(0,)](torch.zeros(0, 8), torch.zeros(8), torch.zeros(0, 8), 8, 1e-6, BLOCK=8)
    assert launches == []


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match=r"arch = 100; the emulator runs PTX for \[80, 86, 89, 90\]"), emulated(100):
        pass


def test_driver_is_put_back() -> None:
    before = triton.runtime.driver._active
    with emulated(80):
        assert triton.runtime.driver.active.get_current_target().arch == 80
    assert triton.runtime.driver._active is before


def make_operator() -> torch.library.CustomOpDef:
    configs = [triton.Config({"BLOCK": 1024}, num_warps=warps) for warps in (1, 4)]
    tuned = triton.autotune(configs, key=["size"])(kernels.row_norm)

    @torch.library.triton_op("incline_fast_emulator::row_norm", mutates_args=())
    def row_norm(x: Tensor, weight: Tensor) -> Tensor:
        y = torch.empty_like(x)
        torch.library.wrap_triton(tuned)[(x.shape[0],)](x, weight, y, x.shape[1], 1e-6)
        return y

    return row_norm


def test_operator_with_autotuning() -> None:
    operator = make_operator()
    x, weight = torch.randn(3, 96), torch.randn(96)
    with emulated(80) as launches:
        y = operator(x, weight)
        torch.library.opcheck(operator, (x, weight))
    assert_close(y, F.rms_norm(x.double(), (96,), weight.double(), 1e-6), 96)
    assert {launch.threads for launch in launches} == {32, 128}, "every configuration was tried"
