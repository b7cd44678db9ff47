"""Clusters in the fiber emulator: every fault is found, and right kernels are right."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from test_fiber import KERNELS, enumerator, run

from emulator import build
from emulator.build import FiberLibrary
from emulator.errors import EmulationError

pytestmark = pytest.mark.gpu_emulated
SOURCE = KERNELS / "clusters.cu"
SEEDS = range(4)
THREADS = 48
HERE = r"kernels/clusters\.cu:\d+"
RACE = "race on shared memory: "
BARRIER = "the cluster's barrier"


def load(sanitizer: build.Sanitizer) -> FiberLibrary:
    return build.load_fibers(SOURCE, sanitizer=sanitizer, include=[KERNELS, build.CSRC])


def number(enumeration: str, name: str) -> int:
    return enumerator(SOURCE, enumeration, name)


def exchange_is_right(
    library: FiberLibrary,
    variant: str,
    seed: int,
    *,
    blocks: int = 2,
    clusters: int = 2,
    rounds: int = 2,
    resident: int,
) -> bool:
    x = np.random.default_rng(0).integers(-9, 10, (clusters, blocks, THREADS)).astype(np.float32)
    y, weights = np.zeros_like(x), 2 * np.arange(1, blocks + 1)[:, None]
    chosen = number("Variant", variant)
    run(library, "exchange", x, y, clusters, blocks, rounds, chosen, seed=seed, resident=resident)
    expected = sum((weights * (x + round_)).sum(1, keepdims=True) for round_ in range(rounds))
    return bool((y == expected).all())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("blocks", "resident"), [(1, 1), (2, 1), (2, 5), (4, 4), (4, 7), (16, 1), (16, 32)])
@pytest.mark.parametrize("variant", ["Usual", "Dynamic", "Split", "OneThreadStores", "OneWarpWaits"])
def test_exchange(library: FiberLibrary, variant: str, blocks: int, resident: int, seed: int) -> None:
    assert exchange_is_right(library, variant, seed, blocks=blocks, clusters=3, rounds=3, resident=resident)


@pytest.mark.parametrize("other_waits", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_what_is_read_early_is_garbage(plain: FiberLibrary, seed: int, other_waits: bool) -> None:
    x, seen = np.arange(1, 33, dtype=np.float32), np.zeros((4, 32), np.float32)
    run(plain, "read_early", x, seen, np.zeros(1, np.uint32), other_waits, seed=seed)
    assert (seen[[1, 3]] == x).all()
    early = seen[[0, 2]]
    assert (np.isnan(early) | (other_waits & (early == 0))).all()


@pytest.mark.parametrize("resident", [1, 8])
@pytest.mark.parametrize("seed", SEEDS)
def test_reading_early_gives_wrong_numbers(plain: FiberLibrary, seed: int, resident: int) -> None:
    for variant in ("NoWait", "OneWaits"):
        assert not exchange_is_right(plain, variant, seed, blocks=4, rounds=1, resident=resident)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("resident", [1, 8])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("NoBarrier", RACE + f"(read by .* the write|write by .* the read) by block .*{HERE}"),
        ("NoWait", RACE + f"(read by .* the write|write by .* the read) by block .*{HERE}"),
        ("OneWaits", RACE + "(read by .* the write|write by .* the read) by block"),
        ("NoBarrierBetween", RACE + "(read by .* the write|write by .* the read) by block"),
        ("BlockBarrierBetween", RACE + "(read by .* the write|write by .* the read) by block"),
        ("StoreAfterArrival", RACE + "(read by .* the write|write by .* the read) by block"),
        ("SameRow", RACE + "write by .* is not ordered after the write by block"),
        ("TargetWrites", RACE + "write by .* is not ordered after the write by block"),
        ("TargetReads", RACE + "(read by .* the write|write by .* the read) by block"),
        ("SourceWritten", RACE + "(read by .* the write|write by .* the read) by block"),
    ],
)
def test_faults_that_are_races_under_every_schedule(
    races: FiberLibrary, fault: str, message: str, resident: int, seed: int
) -> None:
    for blocks in (2, 4):
        with pytest.raises(EmulationError, match=message):
            exchange_is_right(races, fault, seed, blocks=blocks, resident=resident)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("NoFirstBarrier", f"that may not have started: the thread has not waited at {BARRIER}: .*{HERE}"),
        ("NoBarrier", f"a thread ends that has not arrived at {BARRIER} after its store to another block: .*{HERE}"),
    ],
)
def test_faults_that_are_errors_under_every_schedule(plain: FiberLibrary, fault: str, message: str, seed: int) -> None:
    with pytest.raises(EmulationError, match=message):
        exchange_is_right(plain, fault, seed, blocks=4, rounds=1, resident=4)


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("ending", "first", "step"),
    [
        ("NobodyLeaves", 0, 32),
        ("StorerLeavesAfterwards", 0, 32),
        ("OtherBlockLeaves", 0, 32),
        ("HalfOfTargetLeaves", 32, 32),
        ("LanesLeave", 0, 20),
    ],
)
def test_threads_that_have_returned_are_not_waited_for(
    library: FiberLibrary, ending: str, first: int, step: int, seed: int, late: int
) -> None:
    x, y = np.arange(1, 65, dtype=np.float32), np.zeros(64, np.float32)
    run(library, "leave_early", x, y, number("Ending", ending), late, seed=seed)
    stored = (np.arange(64) >= first) & (np.arange(64) % 32 < step)
    assert (y == np.where(stored, x, 0)).all()


@pytest.mark.parametrize("late", [0, 1, 2])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("ending", "message"),
    [
        (
            "TargetLeaves",
            "a block ends before what others store to its shared memory was waited for: .* stored it at|"
            "a store to another block that has ended: .* at",
        ),
        ("TargetArrives", f"a thread ends that has arrived at {BARRIER} and has not waited: block .0, 0, 0. .* at"),
        ("StorerLeaves", f"a thread ends that has not arrived at {BARRIER} after its store to another block: .* at"),
        ("StorerArrives", f"a thread ends that has arrived at {BARRIER} and has not waited: block .1, 0, 0. .* at"),
    ],
)
def test_ends_that_come_too_early(library: FiberLibrary, ending: str, message: str, seed: int, late: int) -> None:
    x, y = np.zeros(64, np.float32), np.zeros(64, np.float32)
    with pytest.raises(EmulationError, match=f"({message}) .*{HERE}"):
        run(library, "leave_early", x, y, number("Ending", ending), late, seed=seed)


def test_both_ends_of_a_target_occur(plain: FiberLibrary) -> None:
    messages = set()
    for late in (1, 2):
        with pytest.raises(EmulationError) as caught:
            run(plain, "leave_early", np.zeros(64, np.float32), np.zeros(64, np.float32), 5, late, seed=1)
        messages.add(str(caught.value).split(" ")[1])
    assert messages == {"store", "block"}


def pass_on(library: FiberLibrary, path: str, seed: int) -> float:
    data, flags, y = np.zeros(1, np.float32), np.zeros(2, np.uint32), np.zeros(1, np.float32)
    run(library, "pass_on", data, flags, y, number("Path", path), seed=seed, resident=4)
    return float(y[0])


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    "path", ["Usual", "BetweenArrivalAndWait", "AcquiredBeforeWait", "EndsAfterBlockBarrier", "EndsAfterWarpBarrier"]
)
def test_what_a_barrier_orders_is_passed_on(library: FiberLibrary, path: str, seed: int) -> None:
    assert pass_on(library, path, seed) == 1


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("path", ["WriteAfterArrival", "NoBarrier", "ReadBeforeWait", "WriterHasEnded"])
def test_what_a_barrier_does_not_order(races: FiberLibrary, path: str, seed: int) -> None:
    with pytest.raises(EmulationError, match=f"race on global memory: (read|write) by .*{HERE}"):
        pass_on(races, path, seed)


def misuse(library: FiberLibrary, fault: str, seed: int = 0) -> list[float]:
    x = np.zeros(2, np.float32)
    run(library, "misuse", x, np.zeros(1, np.uint32), number("Misuse", fault), seed=seed)
    return x.tolist()


@pytest.mark.parametrize("seed", SEEDS)
def test_use_as_intended(library: FiberLibrary, seed: int) -> None:
    assert misuse(library, "None", seed) == [2, 1]


DEADLOCK = r"deadlock: every thread that is left waits for one that cannot come(.|\n)*"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("Rank", "a store to block 2 of a cluster of 2: "),
        ("Misaligned", "a store to another block: the address is not aligned to the size: |misaligned access"),
        ("MisalignedPair", "a store to another block: the address is not aligned to the size: |misaligned access"),
        ("Global", "a store to another block: the address lies outside of shared memory, or goes beyond it: "),
        ("Beyond", "a store to another block: the address lies outside of shared memory, or goes beyond it: "),
        ("AcrossTheEnd", "a store to another block: the address lies outside of shared memory, or goes beyond it: "),
        ("Barrier", "a store to another block overwrites a phase barrier: "),
        ("SecondHalfOfBarrier", "a store to another block overwrites a phase barrier: "),
        ("ArriveTwice", f"a thread arrives at {BARRIER} twice without a wait between: "),
        ("WaitFirst", f"a thread waits at {BARRIER} without having arrived: "),
        ("WaitTwice", f"a thread waits at {BARRIER} without having arrived: "),
        ("DivergedArrival", rf"the lanes of a warp diverge at {BARRIER}, lane \d+ is at .*{HERE}: "),
        ("DivergedWait", rf"the lanes of a warp diverge at {BARRIER}, lane \d+ is at .*{HERE}: "),
        (
            "LaneElsewhere",
            f"{DEADLOCK}arrive at {BARRIER} with mask ffffffff at .*{HERE}(.|\n)*wait at a phase barrier",
        ),
        ("LaneElsewhere", rf"{DEADLOCK}wait at {BARRIER} \(its phase 1 awaits 64 of 128 threads\) at "),
        ("BlockElsewhere", DEADLOCK + r"block \(1, 0, 0\) .* and 63 others: wait at a phase barrier .* at "),
        (
            "WarpElsewhere",
            rf"{DEADLOCK}__syncthreads at .*{HERE}(.|\n)*wait at {BARRIER} \(its phase 1 awaits 64 of 128 ",
        ),
        (
            "Loop",
            r"no progress(.|\n)*block \(1, 0, 0\) .* and 31 others: in a loop at "
            rf"(.|\n)*others: wait at {BARRIER} \(its phase 1 awaits 32 of 128 threads\) at ",
        ),
    ],
)
def test_misuse(library: FiberLibrary, fault: str, message: str, seed: int) -> None:
    with pytest.raises(EmulationError, match=f"({message}).*{HERE}"):
        misuse(library, fault, seed)


ASAN = """
from test_fiber_clusters import exchange_is_right, load
library = load("address")
print([exchange_is_right(library, name, 1, blocks=4, resident=5) for name in ("Usual", "Dynamic")])
"""


def test_address_sanitizer() -> None:
    assert build.fiber_library(SOURCE, sanitizer="address", include=[KERNELS, build.CSRC]).exists()
    command = [sys.executable, "-c", ASAN]
    done = subprocess.run(command, capture_output=True, text=True, env=build.sanitized_environment(), check=False)
    assert "[True, True]" in done.stdout, done.stderr
