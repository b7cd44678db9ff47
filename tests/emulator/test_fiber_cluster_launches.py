"""When clusters start in the fiber emulator, and which are allowed."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from test_fiber import KERNELS, run

from emulator import build
from emulator.build import FiberLibrary
from emulator.errors import EmulationError

pytestmark = pytest.mark.gpu_emulated
SEEDS = range(4)
HERE = r"kernels/cluster_launches\.cu:\d+"


def load(sanitizer: build.Sanitizer) -> FiberLibrary:
    return build.load_fibers(KERNELS / "cluster_launches.cu", sanitizer=sanitizer, include=[KERNELS, build.CSRC])


@pytest.mark.parametrize("seed", SEEDS)
def test_blocks_of_a_cluster_are_in_flight_together(library: FiberLibrary, seed: int) -> None:
    started = np.zeros(1, np.uint32)
    run(library, "wait_for_blocks", started, 1, 8, 8, seed=seed, resident=1)
    run(library, "wait_for_blocks", started, 3, 4, 20, seed=seed, resident=12)
    assert started[0] == 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_starts_when_there_is_room_for_all_of_it(library: FiberLibrary, seed: int) -> None:
    for resident in (1, 4, 6):
        with pytest.raises(EmulationError, match="no progress"):
            run(library, "wait_for_blocks", np.zeros(1, np.uint32), 2, 4, 5, seed=seed, resident=resident)
    run(library, "wait_for_blocks", np.zeros(1, np.uint32), 2, 4, 5, seed=seed, resident=7)


def test_many_barriers_of_many_threads(library: FiberLibrary) -> None:
    run(library, "many_barriers", 16, 96, 5, seed=1)


LIMITS = [
    (0, 8, 1, "cluster of 0 blocks: allowed are 1 to 16"),
    (17, 17, 1, "cluster of 17 blocks: allowed are 1 to 16"),
    (9, 9, 0, "cluster of 9 blocks: the kernel may use 8 .*cudaFuncAttributeNonPortableClusterSizeAllowed"),
    (4, 6, 0, r"cluster of 4 blocks: the x of grid shape \(6, 2, 1\) is not a multiple of it"),
    (8, 8, 0, ""),
    (16, 32, 1, ""),
    (3, 6, 0, ""),
    (1, 5, 0, ""),
]


@pytest.mark.parametrize(("cluster", "blocks", "allowed", "message"), LIMITS)
def test_limits(plain: FiberLibrary, cluster: int, blocks: int, allowed: int, message: str) -> None:
    count = plain.function("count_clusters", *(ctypes.c_int,) * 3, restype=ctypes.c_int)
    assert count(cluster, blocks, allowed) == (-1 if message else 1)
    if message:
        with pytest.raises(EmulationError, match=f"{message}.* at .*{HERE}"):
            run(plain, "nothing", cluster, blocks, allowed)
    else:
        run(plain, "nothing", cluster, blocks, allowed)
