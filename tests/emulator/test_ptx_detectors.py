"""The PTX emulator on nvcc's code: the kernels of test_fiber.py, each right and with its fault."""

from __future__ import annotations

import numpy as np
import pytest
from test_fiber import KERNELS, NO_ACQUIRE, NO_BARRIER, NO_RELEASE, NONE, SEEDS

from emulator import build, ptx
from emulator.ptx import PTXError, TrafficReport

pytestmark = pytest.mark.gpu_emulated


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def code(request: pytest.FixtureRequest) -> str:
    return build.ptx(KERNELS / "detectors.cu", request.param, include=[KERNELS])


def run(code: str, name: str, threads: int, *arguments, blocks: int = 1, **options) -> TrafficReport:
    return ptx.launch(code, name, (blocks, 1, 1), (threads, 1, 1), arguments, **options)


def test_dropped_barrier(code: str) -> None:
    x = np.arange(64, dtype=np.float32)
    run(code, "reverse", 64, x, True)
    assert (x == np.arange(64)[::-1]).all()
    with pytest.raises(PTXError, match=r"race on shared memory: .* PTX line \d+ \(detectors\.cu:\d+\)"):
        run(code, "reverse", 64, x, False)


def test_only_syncwarp_orders_a_warp(code: str) -> None:
    x = np.arange(32, dtype=np.int32)
    run(code, "through_a_warp", 32, x, True)
    assert (x == np.arange(32)[::-1]).all()
    with pytest.raises(PTXError, match="race on shared memory"):
        run(code, "through_a_warp", 32, x, False)


def test_absent_lane(code: str) -> None:
    with pytest.raises(PTXError, match="outside its mask or has returned"):
        run(code, "absent_lane", 32, np.zeros(32, np.int32))


def test_deadlock(code: str) -> None:
    with pytest.raises(PTXError, match=r"deadlock: 32 threads wait, .* at PTX line \d+ \(.*detectors\.cu:\d+\)"):
        run(code, "waits_for_nobody", 32, np.zeros(32, np.int32))


def sum_in_last_block(code: str, fault: int, seed: int = 0, resident: int | None = None) -> tuple[float, float, int]:
    x = np.random.default_rng(0).standard_normal(64 * 10).astype(np.float32)
    parts, total, counter = np.zeros(10, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint32)
    arguments = (x, parts, counter, total, fault)
    run(code, "last_block_sums", 64, *arguments, blocks=10, seed=seed, resident=resident)
    return float(total[0]), float(x.sum(dtype=np.float64)), int(counter[0])


@pytest.mark.parametrize("resident", [1, 3, None])
def test_last_block_finishes(code: str, resident: int | None) -> None:
    results = [sum_in_last_block(code, NONE, seed, resident) for seed in SEEDS]
    assert results[0][0] == pytest.approx(results[0][1], rel=1e-5)
    assert set(results) == {results[0]}, "the same bits in any order"
    assert results[0][2] == 0


@pytest.mark.parametrize(("fault", "memory"), [(NO_RELEASE, "global"), (NO_ACQUIRE, "global"), (NO_BARRIER, "shared")])
def test_dropped_order(code: str, fault: int, memory: str) -> None:
    with pytest.raises(PTXError, match=f"race on {memory} memory"):
        sum_in_last_block(code, fault)


def test_blocks_that_write_one_place(code: str) -> None:
    with pytest.raises(
        PTXError, match="race on global memory: block 0 thread 0 comes unordered after a write by block 1"
    ):
        run(code, "no_order", 1, np.zeros(1, np.int32), blocks=2)


def run_chain(code: str, backwards: bool, resident: int) -> list[int]:
    ticket, flags, order = np.zeros(1, np.uint32), np.zeros(8, np.uint32), np.zeros(8, np.int32)
    run(code, "chain", 1, ticket, flags, order, backwards, blocks=8, resident=resident, max_steps=5000)
    return order.tolist()


def test_waiting_for_other_blocks(code: str) -> None:
    expected = list(range(1, 9))
    assert run_chain(code, False, 1) == run_chain(code, False, 8) == run_chain(code, True, 8) == expected
    with pytest.raises(PTXError, match="no end after 5000 steps"):
        run_chain(code, True, 4)


def test_misaligned_vector_access(code: str) -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(code, "copy_four", 4, x, y)
    assert (y[:16] == x[:16]).all()
    with pytest.raises(PTXError, match="misaligned access of 16 bytes: thread 0"):
        run(code, "copy_four", 4, x[1:], y)


def test_out_of_bounds(code: str) -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(15, np.float32)
    with pytest.raises(PTXError, match="out of bounds of all global buffers: thread 3"):
        run(code, "copy_four", 4, x, y)
    run(code, "write_dynamic", 1, y, 15, dynamic_bytes=64)
    with pytest.raises(PTXError, match="out of bounds of 64 bytes of shared memory"):
        run(code, "write_dynamic", 1, y, 16, dynamic_bytes=64)


def test_forgotten_wait_for_an_asynchronous_copy(code: str) -> None:
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    run(code, "asynchronously", 32, x, y, True)
    assert (y == x[::-1]).all()
    run(code, "asynchronously", 32, x, y, False)
    assert (y != x[::-1]).all()


def test_launches_that_do_not_fit(code: str) -> None:
    y = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match=r"block = \(2048, 1, 1\)"):
        run(code, "garbage", 2048, y)
    with pytest.raises(ValueError, match="has 1 parameters, not 2"):
        run(code, "garbage", 32, y, y)
    with pytest.raises(ValueError, match="names 0 entries of the module; it has: reverse"):
        run(code, "no_such_kernel", 32, y)
