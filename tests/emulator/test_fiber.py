"""The fiber emulator: each detector fires on a kernel with one fault and is silent on the right one."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from emulator import build
from emulator.build import FiberLibrary
from emulator.errors import EmulationError

pytestmark = pytest.mark.gpu_emulated
KERNELS = Path(__file__).parent / "kernels"
NONE, NO_RELEASE, NO_ACQUIRE, NO_BARRIER = range(4)
SEEDS = (0, 1, 2, 3)


def load(sanitizer: build.Sanitizer) -> FiberLibrary:
    return build.load_fibers(KERNELS / "detectors.cu", sanitizer=sanitizer, include=[KERNELS])


def run(
    library: FiberLibrary, name: str, *arguments: np.ndarray | bool | int, seed: int = 0, resident: int = 4
) -> None:
    """Call run_<name> with arrays as pointers."""
    library.schedule(seed, resident)
    kinds = {np.ndarray: ctypes.c_void_p, bool: ctypes.c_bool, int: ctypes.c_int}
    call = library.function(f"run_{name}", *(kinds[type(value)] for value in arguments))
    call(*(value.ctypes.data if isinstance(value, np.ndarray) else value for value in arguments))


def enumerator(source: Path, enumeration: str, name: str) -> int:
    """The number of an enumerator in the kernels' source."""
    body = re.search(rf"enum class {enumeration} : int {{(.*?)}}", source.read_text(), re.DOTALL)
    assert body is not None
    return re.findall(r"\bk(\w+),", body.group(1)).index(name)


@pytest.mark.parametrize("seed", SEEDS)
def test_barrier_in_its_place(library: FiberLibrary, seed: int) -> None:
    x = np.arange(64, dtype=np.float32)
    run(library, "reverse", x, True, seed=seed)
    assert (x == np.arange(64)[::-1]).all()


def test_dropped_barrier_gives_other_results_under_some_schedule(plain: FiberLibrary) -> None:
    right = []
    for seed in SEEDS:
        x = np.arange(64, dtype=np.float32)
        run(plain, "reverse", x, False, seed=seed)
        right.append(bool((x == np.arange(64)[::-1]).all()))
    assert not all(right)


@pytest.mark.parametrize("seed", SEEDS)
def test_dropped_barrier_is_a_race_under_every_schedule(races: FiberLibrary, seed: int) -> None:
    with pytest.raises(EmulationError, match=r"race on shared memory: .*kernels/detectors\.cu:\d+"):
        run(races, "reverse", np.zeros(64, np.float32), False, seed=seed)


def test_shuffles_do_not_order_memory_but_syncwarp_does(races: FiberLibrary) -> None:
    x = np.arange(32, dtype=np.int32)
    run(races, "through_a_warp", x, True)
    assert (x == np.arange(32)[::-1]).all()
    with pytest.raises(EmulationError, match="race on shared memory"):
        run(races, "through_a_warp", x, False)


def test_divergent_barrier_names_both_places(library: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match=r"divergent barrier: .*detectors\.cu:\d+, .*detectors\.cu:\d+"):
        run(library, "divergent", np.zeros(64, np.float32))


def test_shuffle_from_an_absent_lane(library: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match="outside its mask"):
        run(library, "absent_lane", np.zeros(32, np.int32))


def test_deadlock_lists_who_waits_where(library: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match=r"deadlock(.|\n)*__shfl_sync with mask ffffffff at .*detectors\.cu:\d+"):
        run(library, "waits_for_nobody", np.zeros(32, np.int32))


def sum_in_last_block(library: FiberLibrary, fault: int, seed: int, resident: int) -> tuple[float, float, int]:
    x = np.random.default_rng(0).standard_normal(64 * 10).astype(np.float32)
    parts, total, counter = np.zeros(10, np.float32), np.zeros(1, np.float32), np.zeros(1, np.uint32)
    run(library, "last_block_sums", x, parts, counter, total, 10, fault, seed=seed, resident=resident)
    return float(total[0]), float(x.sum(dtype=np.float64)), int(counter[0])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("resident", [1, 4])
def test_last_block_finishes(library: FiberLibrary, seed: int, resident: int) -> None:
    total, expected, counter = sum_in_last_block(library, NONE, seed, resident)
    assert total == pytest.approx(expected, rel=1e-5)
    assert counter == 0
    assert total == sum_in_last_block(library, NONE, seed + 17, 2)[0]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("resident", [1, 4])
@pytest.mark.parametrize("fault", [NO_RELEASE, NO_ACQUIRE])
def test_dropped_fence_is_a_race_under_every_schedule(
    races: FiberLibrary, fault: int, seed: int, resident: int
) -> None:
    with pytest.raises(EmulationError, match="race on global memory: read by block"):
        sum_in_last_block(races, fault, seed, resident)


def test_dropped_barrier_before_a_combination(races: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match="race on shared memory"):
        sum_in_last_block(races, NO_BARRIER, 1, 4)


def test_blocks_that_write_one_place(races: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match=r"race on global memory: write by block \d thread 0"):
        run(races, "no_order", np.zeros(1, np.int32))


@pytest.mark.parametrize("resident", [1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_waiting_for_an_earlier_block(library: FiberLibrary, seed: int, resident: int) -> None:
    ticket, flags, order = np.zeros(1, np.uint32), np.zeros(8, np.uint32), np.zeros(8, np.int32)
    run(library, "chain", ticket, flags, order, 8, False, seed=seed, resident=resident)
    assert order.tolist() == list(range(1, 9))


@pytest.mark.parametrize("seed", [0, 1])
def test_waiting_for_a_block_that_has_not_started(plain: FiberLibrary, seed: int) -> None:
    ticket, flags, order = np.zeros(1, np.uint32), np.zeros(8, np.uint32), np.zeros(8, np.int32)
    run(plain, "chain", ticket, flags, order, 8, True, seed=seed, resident=8)
    assert order.tolist() == list(range(1, 9))
    with pytest.raises(EmulationError, match="no progress"):
        run(plain, "chain", np.zeros(1, np.uint32), np.zeros(8, np.uint32), order, 8, True, seed=seed, resident=4)


def order_of_threads(library: FiberLibrary, seed: int) -> list[int]:
    seen, count = np.zeros(4 * 16, np.int32), np.zeros(1, np.uint32)
    run(library, "record_order", seen, count, 4, 16, seed=seed)
    return seen.tolist()


def test_seeds_shuffle_blocks_and_threads_and_repeat(plain: FiberLibrary) -> None:
    orders = [order_of_threads(plain, seed) for seed in SEEDS]
    assert orders[0] == list(range(64))
    assert len({tuple(order) for order in orders}) == len(SEEDS)
    assert orders[1] == order_of_threads(plain, 1)
    blocks = [thread // 16 for thread in orders[1]]
    assert sum(a != b for a, b in pairwise(blocks)) > 3, "blocks are interleaved"


def test_misaligned_vector_access(library: FiberLibrary) -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    run(library, "copy_four", x, y, 4)
    assert (y[:16] == x[:16]).all()
    with pytest.raises(EmulationError, match=r"misaligned access: .* not a multiple of 16: .*detectors\.cu"):
        run(library, "copy_four", x[1:], y, 4)


def test_shared_memory_starts_as_garbage(plain: FiberLibrary) -> None:
    y = np.zeros(32, np.float32)
    run(plain, "garbage", y)
    assert np.isnan(y).all()


def test_shared_memory_beyond_what_was_asked_for(plain: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match="dynamic shared memory 60000 bytes: the kernel may use 49152"):
        run(plain, "write_dynamic", np.zeros(1, np.float32), 0, 60000)


def test_launch_shapes_are_checked(plain: FiberLibrary) -> None:
    with pytest.raises(EmulationError, match=r"block shape \(2048, 1, 1\)"):
        run(plain, "record_order", np.zeros(1, np.int32), np.zeros(1, np.uint32), 1, 2048)
    with pytest.raises(EmulationError, match=r"grid shape \(0, 1, 1\)"):
        run(plain, "record_order", np.zeros(1, np.int32), np.zeros(1, np.uint32), 0, 32)


@pytest.mark.parametrize("seed", SEEDS)
def test_forgotten_wait_for_an_asynchronous_copy(library: FiberLibrary, seed: int) -> None:
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    run(library, "asynchronously", x, y, True, seed=seed)
    assert (y == x[::-1]).all()
    run(library, "asynchronously", x, y, False, seed=seed)
    assert (y != x[::-1]).all()


ASAN = """
import numpy as np
from test_fiber import load, run
y = np.zeros(4, np.float32)
run(load("address"), "write_dynamic", y, {index}, 64)
print("wrote", y[0])
"""


@pytest.mark.parametrize(("index", "outcome"), [(15, "wrote 1.0"), (16, "heap-buffer-overflow")])
def test_address_sanitizer(index: int, outcome: str) -> None:
    load_in_parent = build.fiber_library(KERNELS / "detectors.cu", sanitizer="address", include=[KERNELS])
    assert load_in_parent.exists()
    command = [sys.executable, "-c", ASAN.format(index=index)]
    done = subprocess.run(command, capture_output=True, text=True, env=build.sanitized_environment(), check=False)
    assert outcome in done.stdout + done.stderr
