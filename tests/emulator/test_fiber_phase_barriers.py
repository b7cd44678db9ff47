"""Phase barriers and bulk copies in the fiber emulator: every fault is found, and right kernels are right."""

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
SOURCE = KERNELS / "phase_barriers.cu"
SEEDS = range(6)
BLOCKS, ROWS, COLUMNS = 5, 10, 64
HERE = r"kernels/phase_barriers\.cu:\d+"
RACE = "race on shared memory: "


def load(sanitizer: build.Sanitizer) -> FiberLibrary:
    return build.load_fibers(SOURCE, sanitizer=sanitizer, include=[KERNELS, build.CSRC])


def number(enumeration: str, name: str) -> int:
    return enumerator(SOURCE, enumeration, name)


def ring_is_right(
    library: FiberLibrary, variant: str, seed: int, resident: int = 2, producer_first: bool = False
) -> bool:
    x = np.random.default_rng(0).standard_normal((BLOCKS, ROWS, COLUMNS)).astype(np.float32)
    y, kept = np.zeros_like(x), x.copy()
    chosen = number("Variant", variant)
    run(library, "ring_buffer", x, y, BLOCKS, ROWS, producer_first, chosen, seed=seed, resident=resident)
    return bool((y == kept[:, :, ::-1]).all())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("resident", [1, 2, 4])
@pytest.mark.parametrize("variant", ["Usual", "OneLaneWaits", "AllArrive", "ProducerReads"])
def test_ring_buffer(library: FiberLibrary, variant: str, seed: int, resident: int) -> None:
    assert ring_is_right(library, variant, seed, resident, producer_first=False)
    assert ring_is_right(library, variant, seed, resident, producer_first=True)


# What is said with the race detector and without.
ERRORS = {
    "NoAnnounce": (RACE + ".*bulk copy", "has all its arrivals, which announced 0 bytes, and copies of 256"),
    "HalfAnnounced": ("announced 128 bytes, and copies of 256: .*" + HERE,) * 2,
    "CopyTwice": (RACE + "write by .*bulk copy", "announced 256 bytes, and copies of 384: .*" + HERE),
    "ArriveTwice": ("an arrival too many in a phase of a barrier: .*" + HERE,) * 2,
    "NoCopy": (r"deadlock(.|\n)*wait at a phase barrier \(its phase 3 .* of 128 bytes\) at .*" + HERE,) * 2,
    "NoArrival": (r"deadlock(.|\n)*wait at a phase barrier \(its phase 0 awaits 2 arrivals.*" + HERE,) * 2,
    "NotShown": ("a copy uses a barrier that was not shown to the copies: .*" + HERE,) * 2,
    "ShownByAnother": ("a copy uses a barrier that was not shown to the copies: .*" + HERE,) * 2,
    "NoEmptyWait": (RACE, RACE + "an arrival at a barrier is not ordered after the phase before it"),
    "EmptyParity": (RACE, RACE + "an arrival at a barrier is not ordered after the phase before it"),
}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", ERRORS)
def test_faults_that_are_errors_under_every_schedule(
    library: FiberLibrary, fault: str, seed: int, races: FiberLibrary
) -> None:
    with pytest.raises(EmulationError, match=ERRORS[fault][library is not races]):
        ring_is_right(library, fault, seed, producer_first=seed % 2 == 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("resident", [1, 4])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("NoEmptyWait", RACE),
        ("NoFullWait", RACE + ".* (by|the) .*bulk copy"),
        ("FullParity", RACE + ".* (by|the) .*bulk copy"),
        ("OneWaits", RACE + ".* (by|the) .*bulk copy"),
        ("ArriveFirst", RACE + "write by block .*'s bulk copy .* the read by"),
        ("NoWarpBarrier", RACE + "write by block .*'s bulk copy .* the read by"),
        ("ReadAfterArrival", RACE + "(write by block .*'s bulk copy .* the read by|read by .*'s bulk copy)"),
        ("WriteSource", r"race on global memory: write by .* is not ordered after the read by block \d's bulk copy"),
        ("ReadAsData", RACE + "(read|write) by .* is not ordered after the (read|write) by"),
        ("WrittenAsData", RACE + "(write by .* the atomic|atomic by .* the write) by"),
        ("ShownLate", "a copy uses a barrier that was not shown to the copies"),
        ("NoBlockBarrier", "a phase barrier is used (that was never|by a thread that is not ordered after its) init"),
    ],
)
def test_faults_that_are_races_under_every_schedule(
    races: FiberLibrary, fault: str, message: str, seed: int, resident: int
) -> None:
    with pytest.raises(EmulationError, match=message):
        ring_is_right(races, fault, seed, resident)


@pytest.mark.parametrize("fault", ["NoFullWait", "FullParity", "OneWaits", "WriteSource"])
@pytest.mark.parametrize("seed", SEEDS)
def test_copies_land_so_late_that_faults_show_without_the_race_detector(
    plain: FiberLibrary, fault: str, seed: int
) -> None:
    try:
        right = ring_is_right(plain, fault, seed)
    except EmulationError:
        right = False
    assert not right


@pytest.mark.parametrize("resident", [1, 4])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("waiting", [0, 1, 63])
def test_what_is_read_early_is_garbage(plain: FiberLibrary, waiting: int, seed: int, resident: int) -> None:
    x, y = np.arange(COLUMNS, dtype=np.float32), np.zeros(COLUMNS, np.float32)
    run(plain, "read_early", x, y, waiting, seed=seed, resident=resident)
    assert (y[:waiting] == x[:waiting]).all()
    assert (y[waiting:] != x[waiting:]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_reading_early_is_a_race(races: FiberLibrary, seed: int) -> None:
    x, y = np.arange(COLUMNS, dtype=np.float32), np.zeros(COLUMNS, np.float32)
    run(races, "read_early", x, y, COLUMNS, seed=seed)
    assert (y == x).all()
    for waiting in (0, 1, 63):
        with pytest.raises(EmulationError, match=RACE + f".*{HERE}.*bulk copy|" + RACE + f".*bulk copy.*{HERE}"):
            run(races, "read_early", x, y, waiting, seed=seed)


@pytest.mark.parametrize("announced_first", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_copies_of_many_threads_in_one_phase(library: FiberLibrary, announced_first: bool, seed: int) -> None:
    x, y = np.arange(128, dtype=np.float32), np.zeros(64, np.float32)
    run(library, "copy_together", x, y, announced_first, seed=seed)
    assert (y == x[:64] + x[64:]).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_loop_that_waits_for_a_thread_at_a_phase_barrier(library: FiberLibrary, seed: int) -> None:
    x, flag = np.zeros(16, np.float32), np.zeros(1, np.uint32)
    run(library, "wait_for_a_waiting_thread", x, flag, True, seed=seed)
    assert flag[0] == 1
    waits = rf"no progress(.|\n)*wait at a phase barrier \(its phase 0 .* 64 bytes\) at .*{HERE}"
    with pytest.raises(EmulationError, match=waits):
        run(library, "wait_for_a_waiting_thread", x, np.zeros(1, np.uint32), False, seed=seed)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("phases", [0, 1, 2, 3])
def test_a_parity_is_all_that_is_known_of_a_phase(library: FiberLibrary, phases: int, parity: int) -> None:
    if phases % 2 != parity:
        run(library, "count_phases", phases, parity, False)
    else:
        with pytest.raises(EmulationError, match=rf"deadlock(.|\n)*phase {phases} awaits 1 arrivals.*{HERE}"):
            run(library, "count_phases", phases, parity, False)


def test_who_sleeps_through_two_phases_waits_on(library: FiberLibrary) -> None:
    outcomes = []
    for seed in range(1, 13):
        try:
            run(library, "count_phases", 2, 0, True, seed=seed)
            outcomes.append("passed")
        except EmulationError as error:
            outcomes.append(str(error).split(":")[0])
    assert set(outcomes) == {"passed", "deadlock"}


def test_copies_land_together_or_apart(plain: FiberLibrary) -> None:
    outcomes = []
    for seed in range(1, 13):
        seen = np.zeros(2, np.uint32)
        run(plain, "land_apart", np.zeros(4, np.float32), seen, seed=seed)
        outcomes.append(int(seen[1]))
    assert outcomes.count(0) > 2
    assert outcomes.count(1) > 2


def misuse(library: FiberLibrary, fault: str) -> np.ndarray:
    x = np.arange(16, dtype=np.float32)
    run(library, "misuse", x, number("Misuse", fault))
    return x


def test_use_as_intended(library: FiberLibrary) -> None:
    assert misuse(library, "None")[:5].tolist() == [1, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("TargetMisaligned", "not all multiples of 16"),
        ("SourceMisaligned", "not all multiples of 16"),
        ("BytesMisaligned", "not all multiples of 16"),
        ("NoBytes", "a bulk copy of no bytes"),
        ("TargetBeyond", "a bulk copy goes beyond the block's shared memory"),
        ("TargetGlobal", "a bulk copy goes beyond the block's shared memory"),
        ("SourceShared", "a bulk copy comes from shared memory"),
        ("TargetIsBarrier", "a bulk copy overwrites a phase barrier"),
        ("TooManyBytes", "awaits more than 1048575 bytes"),
        ("NoArrivals", "takes 1 to 1048575 arrivals"),
        ("TooManyArrivals", "takes 1 to 1048575 arrivals"),
        ("Parity", "the parity of a phase is 0 or 1"),
        ("Twice", "initialised again while it is in use"),
        ("NeverInitialised", "never initialised"),
        ("CopiedBarrier", "never initialised"),
        ("GlobalBarrier", "a phase barrier lies outside of shared memory"),
        ("EndsEarly", "a block ends while a bulk copy to its shared memory may be under way: .* started it at"),
    ],
)
def test_misuse(library: FiberLibrary, fault: str, message: str) -> None:
    with pytest.raises(EmulationError, match=f"{message}.*{HERE}"):
        misuse(library, fault)


ASAN = """
import numpy as np
from test_fiber_phase_barriers import load, number, run
x = np.arange({count}, dtype=np.float32)
run(load("address"), "misuse", x, number("Misuse", "None"))
print(x.tolist())
"""


@pytest.mark.parametrize(("count", "outcome"), [(4, "[1.0, 2.0, 3.0, 4.0]"), (3, "heap-buffer-overflow")])
def test_address_sanitizer(count: int, outcome: str) -> None:
    assert build.fiber_library(SOURCE, sanitizer="address", include=[KERNELS, build.CSRC]).exists()
    command = [sys.executable, "-c", ASAN.format(count=count)]
    done = subprocess.run(command, capture_output=True, text=True, env=build.sanitized_environment(), check=False)
    assert outcome in done.stdout + done.stderr
    assert count == 4 or "bulk_copy" in done.stderr or "end_phase" in done.stderr
