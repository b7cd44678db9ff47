"""Phase barriers and bulk copies in the PTX emulator: a ring of slots, right and with one fault each; single faults."""

from __future__ import annotations

import re
from enum import IntEnum

import numpy as np
import pytest
from test_fiber import KERNELS

from emulator import build, ptx
from emulator.ptx import PTXError, TrafficReport

pytestmark = pytest.mark.gpu_emulated

SOURCE = KERNELS / "ptx_phase_barriers.cu"
names = re.search(r"enum class Way : int \{(.*?)\};", SOURCE.read_text(), re.DOTALL).group(1)
Way = IntEnum("Way", [(name, number) for number, name in enumerate(re.findall(r"\bk(\w+),", names))])
COPY = r"'cp\.async\.bulk\..* at PTX line \d+ \(bulk_copy\.h:\d+, inlined at ptx_phase_barriers\.cu:\d+\)"


def aligned(count: int) -> np.ndarray:
    """Words that start at a sector of 32 bytes."""
    memory = np.zeros(count + 8, np.uint32)
    skip = -memory.ctypes.data % 32 // 4
    return memory[skip : skip + count]


# ---- a ring ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def code() -> str:
    return build.ptx(SOURCE, "sm_90")


def run_ring(code: str, way: str, blocks: int = 3, pieces: int = 11, **options) -> TrafficReport:
    """Four warps of readers; the result is judged bit for bit."""
    x = aligned(blocks * pieces * 256).view(np.float32)
    x[:] = np.random.default_rng(0).standard_normal(len(x))
    y, expected = (np.zeros((blocks, 128), np.float32) for _ in range(2))
    for number, piece in enumerate(x.reshape(blocks, pieces, 256).swapaxes(0, 1)):
        expected += piece[:, :128] + 2 * piece[:, :127:-1] + piece[:, number : number + 1]
    options = {"dynamic_bytes": 3 * 1024} | options
    report = ptx.launch(code, "ring", (blocks, 1, 1), (160, 1, 1), [x, y, pieces, int(Way[way])], **options)
    np.testing.assert_array_equal(y, expected)
    return report


@pytest.mark.parametrize("options", [{}, {"resident": 1}, {"seed": 1}, {"seed": 2, "resident": 2}, {"seed": 3}])
@pytest.mark.parametrize("way", ["EveryLaneWaits", "OneLaneWaits", "NamedBarrier"])
def test_ring(code: str, way: str, options: dict[str, int]) -> None:
    run_ring(code, way, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("way", "problem"),
    [
        ("NoWaitForCopies", "race on shared memory|deadlock at phase barriers"),
        (
            "WaitAtOtherStage",
            "race on shared memory",
        ),
        (
            "OnlyOneLaneWaits",
            "race on shared memory",
        ),
        ("WrongParity", "race on shared memory|deadlock at phase barriers"),
        ("NoWaitForReaders", "race on shared memory"),
        ("NamedBarrierIsNoWait", "race on shared memory"),
        (
            "WrongParityOfReaders",
            r"deadlock at phase barriers: .* phase 0 .* lacks 4 arrivals and 0 bytes.*'mbarrier\.try_wait",
        ),
        ("NoWarpBarrier", rf"race on shared memory: .* unordered after a read by several threads: {COPY}"),
        ("NoBlockBarrier", r"race on shared memory: .* unordered after a write by block 0 thread 0: 'mbarrier"),
        ("NoProxyFence", f"no proxy fence has shown this barrier to the copies: block 0 thread 128: {COPY}"),
        ("LateProxyFence", f"no proxy fence has shown this barrier to the copies: block 0 thread 128: {COPY}"),
        ("AnnouncesLess", f"1024 bytes arrive in a phase that announces 1008: {COPY}"),
        ("AnnouncesMore", r"deadlock at phase barriers: .* lacks 0 arrivals and 16 bytes.*'mbarrier\.try_wait"),
        ("AnnouncesNothing", "race on shared memory"),
        ("ArrivesTwice", r"one arrival too many before the phase has ended: block 0 thread 128: 'mbarrier\.arrive"),
        ("LeftOver", f"block 0 ends while bytes are copied into its shared memory: {COPY}"),
    ],
)
def test_ring_with_a_fault(code: str, way: str, problem: str, seed: int) -> None:
    with pytest.raises(PTXError, match=problem):
        run_ring(code, way, seed=seed)


def test_ring_out_of_bounds(code: str) -> None:
    with pytest.raises(PTXError, match=rf"out of bounds of \d+ bytes of shared memory: .*{COPY}"):
        run_ring(code, "EveryLaneWaits", dynamic_bytes=3 * 1024 - 16)


def test_ring_traffic(code: str) -> None:
    report = run_ring(code, "EveryLaneWaits")
    read = report.reads["ring_param_0"]
    copies, sectors = 3 * 11 * 2, 3 * 11 * 1024 // 32
    assert (read.requests, read.sectors, read.distinct_sectors) == (copies, sectors, sectors)
    assert read.widths == {8 * 512: copies}
    assert report.bytes_read() == 3 * 11 * 1024
    reads_of_shared = 3 * 11 * 4 * 3
    assert report.shared_requests == report.shared_passes == copies * 512 // 128 + reads_of_shared
    assert report.worst_bank_conflict == 1


# ---- single instructions ---------------------------------------------------------------------------------------------

# {body} with 64 threads; at the end y[tid] = %v. Thread 0 is %first, %own is 8 tid.
TEMPLATE = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry phases(.param .u64 x, .param .u64 z, .param .u64 y)
{{
  .reg .pred %first, %done, %upper;
  .reg .b64 %x, %z, %y, %offset, %state;
  .reg .b32 %tid, %v, %own, %slot, %size;
  .shared .align 16 .b8 slots[1024];
  .shared .align 8 .b8 barriers[512];
  mov.u32 %tid, %tid.x;
  setp.eq.u32 %first, %tid, 0;
  setp.ge.u32 %upper, %tid, 32;
  mul.wide.u32 %offset, %tid, 4;
  shl.b32 %own, %tid, 3;
  ld.param.u64 %x, [x];
  ld.param.u64 %z, [z];
  ld.param.u64 %y, [y];
  add.u64 %y, %y, %offset;
  mov.u32 %v, 0;
  {body}
  st.global.u32 [%y], %v;
  ret;
}}
"""
INIT = "@%first mbarrier.init.shared::cta.b64 [barriers], 1;"
FENCE = "@%first fence.proxy.async.shared::cta;"
SYNC = "bar.sync 0;"
BARRIER = f"{INIT} {FENCE} {SYNC}"
ARRIVE = "@%first mbarrier.arrive.shared::cta.b64 _, [barriers];"
ANNOUNCE = "@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [barriers], 256;"
COPIES = "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
FILL = f"@%first {COPIES} [slots], [%x], 256, [barriers];"
READ = "mov.u32 %slot, slots; mad.lo.u32 %slot, %tid, 4, %slot; ld.shared.u32 %v, [%slot];"
X, Z = aligned(64), aligned(64)
X[:], Z[:] = np.arange(100, 164), 7


def wait(parity: int = 0, kind: str = "try_wait") -> str:
    loop = f"mbarrier.{kind}.parity.shared::cta.b64 %done, [barriers], {parity}; @!%done bra AGAIN{parity};"
    return f"AGAIN{parity}: {loop}"


def evaluate(*steps: str, x: np.ndarray = X, **options) -> np.ndarray:
    y = np.zeros(64, np.uint32)
    ptx.launch(TEMPLATE.format(body=" ".join(steps)), "phases", (1, 1, 1), (64, 1, 1), [x, Z, y], **options)
    return y


@pytest.mark.parametrize("kind", ["try_wait", "test_wait"])
@pytest.mark.parametrize("steps", [(ANNOUNCE, FILL), (FILL, ANNOUNCE)], ids=["announced", "announced-later"])
def test_a_copy(steps: tuple[str, str], kind: str) -> None:
    for seed in range(3):
        assert np.array_equal(evaluate(BARRIER, *steps, wait(kind=kind), READ, seed=seed), X)


def test_a_copy_is_garbage_before_the_wait() -> None:
    unjudged = READ.replace("ld.shared", "ld.volatile.shared")
    old = "mov.u32 %slot, slots; mad.lo.u32 %slot, %tid, 4, %slot; st.shared.u32 [%slot], 5;"
    late = evaluate(old, BARRIER, FILL, SYNC, unjudged, ANNOUNCE, wait())
    assert (late == 0xFFFFFFFF).all()
    assert (evaluate(old, BARRIER, unjudged) == 5).all()


def test_phases_of_a_fresh_barrier() -> None:
    before = "mbarrier.test_wait.parity.shared::cta.b64 %done, [barriers], {}; selp.u32 %v, 1, 0, %done;"
    assert (evaluate(BARRIER, before.format(1)) == 1).all()
    assert (evaluate(BARRIER, before.format(0)) == 0).all()
    assert (evaluate(BARRIER, ARRIVE, wait(0), ANNOUNCE, FILL, wait(1), READ) == X).all()


@pytest.mark.parametrize(
    "reading",
    [
        f"{READ} {wait()}",
        f"{SYNC} {READ} {wait()}",
        f"@!%first bra END; {READ} END: {wait()}",  # the thread that copies must wait as well
        f"@%upper bra READ; {wait()} READ: {READ}",  # the phase has ended, but the second warp has not seen it
    ],
)
def test_a_read_without_a_wait(reading: str) -> None:
    with pytest.raises(PTXError, match=r"race on shared memory: .* after a write by block 0 thread 0: 'ld\.shared"):
        evaluate(BARRIER, ANNOUNCE, FILL, reading)


def test_one_waits_and_a_block_barrier_tells_the_others() -> None:
    one_waits = f"@!%first bra MEET; {wait()} MEET: {SYNC}"
    assert np.array_equal(evaluate(BARRIER, ANNOUNCE, FILL, one_waits, READ), X)


def test_a_slot_can_be_written_after_its_copy() -> None:
    steps = (BARRIER, ANNOUNCE, FILL, wait(), SYNC)
    y = evaluate(*steps, "mov.u32 %slot, slots; @%first st.shared.u32 [%slot], 9;", SYNC, READ)
    assert y.tolist() == [9, *X[1:].tolist()]


def one(thread: int, *steps: str) -> str:
    """Steps of one thread."""
    branch = f"setp.eq.u32 %first, %tid, {thread}; @!%first bra AFTER{thread};"
    return " ".join([branch, *steps, f"AFTER{thread}: setp.eq.u32 %first, %tid, 0;"])


def at(number: int, step: str) -> str:
    """The step with another barrier."""
    return step.replace("[barriers]", f"[barriers+{8 * number}]").replace("AGAIN", f"AGAIN{number}")


def test_a_write_after_a_copy_after_a_read() -> None:
    """Thread 63 reads, 32 copies, 1 reads the copy and 0 overwrites it: each knows of the one before alone."""
    setup = [at(number, INIT) for number in range(3)]
    read = "ld.shared.u32 %v, [slots];"
    steps = [ANNOUNCE, one(63, read, at(1, ARRIVE)), one(32, at(1, wait()), FILL), one(1, wait(), read, at(2, ARRIVE))]
    write = "st.shared.u32 [slots], 9; ld.shared.u32 %v, [slots];"
    y = evaluate(*setup, FENCE, SYNC, *steps, one(0, at(2, wait()), write))
    assert y[[0, 1, 63]].tolist() == [9, X[0], 0xFFFFFFFF]
    with pytest.raises(PTXError, match=r"race on shared memory: block 0 thread 0 .* after a read by block 0 thread 1"):
        evaluate(*setup, FENCE, SYNC, *steps, one(0, wait(), write))


def test_a_barrier_of_some_warps_orders_those_alone() -> None:
    write = "mov.u32 %slot, slots; @%first st.shared.u32 [%slot], 9;"
    read = "@%upper ld.shared.u32 %v, [%slot];"
    assert evaluate(BARRIER, write, SYNC, read)[32:].tolist() == [9] * 32
    with pytest.raises(PTXError, match=r"race on shared memory: block 0 thread 32 .* write by block 0 thread 0"):
        evaluate(BARRIER, write, "@%upper bar.sync 1, 32;", read)


def test_lanes_with_barriers_and_sizes_of_their_own() -> None:
    lane = "mov.u32 %slot, barriers; add.u32 %own, %own, %slot;"
    setup = f"{lane} mbarrier.init.shared::cta.b64 [%own], 1; fence.mbarrier_init.release.cluster; {SYNC}"
    sizes = "and.b32 %size, %tid, 1; add.u32 %size, %size, 1; shl.b32 %size, %size, 4;"  # 16 or 32 bytes
    slot = "mov.u32 %slot, slots; mad.lo.u32 %slot, %tid, 32, %slot; mul.wide.u32 %offset, %tid, 16;"
    copy = f"add.u64 %x, %x, %offset; {COPIES} [%slot], [%x], %size, [%own];"
    start = f"@%upper bra END; mbarrier.arrive.expect_tx.shared::cta.b64 _, [%own], %size; {slot} {copy}"
    end = "add.u32 %slot, %slot, %size; ld.shared.u32 %v, [%slot + -4]; END:"
    x = aligned(33 * 4)
    x[:] = np.arange(len(x))
    y = evaluate(setup, sizes, start, wait().replace("[barriers]", "[%own]"), end, x=x)
    assert y[:32].tolist() == [4 * (lane + 1 + lane % 2) - 1 for lane in range(32)]
    with pytest.raises(PTXError, match="out of bounds of all global buffers: thread 31 of the launch"):
        evaluate(setup, sizes, start, end, x=x[:-4])
    start = start.replace("%tid, 32, %slot", "%tid, 16, %slot")
    for size, threads in ((sizes, (1, 2)), ("mov.u32 %size, 32;", (0, 1))):
        names = "race on shared memory: block 0 thread {} .* write by block 0 thread {}: 'cp".format(*threads)
        with pytest.raises(PTXError, match=names):
            evaluate(setup, size, start, end, x=x)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((ARRIVE,), "a barrier that was never initialised: block 0 thread 0"),
        ((BARRIER, wait().replace("barriers", "barriers+8")), "a barrier that was never initialised"),
        ((BARRIER, ARRIVE.replace("barriers", "barriers+4")), "misaligned access of 8 bytes"),
        ((BARRIER, ARRIVE.replace(".shared::cta", "").replace("barriers", "%x")), "must be in shared memory"),
        ((BARRIER, INIT), "a barrier that is in use is initialised: block 0 thread 0"),
        ((INIT.replace(", 1", ", 0"),), "not 1 to 1048575 arrivals"),
        ((BARRIER, ARRIVE.replace("_", "%state")), "knows init, inval, .* arrivals into _"),
        ((BARRIER, wait(2)), "a parity other than 0 and 1"),
        ((BARRIER, FILL.replace("256", "0")), "a copy of no bytes, or not of a multiple of 16"),
        ((BARRIER, FILL.replace("256", "24")), "a copy of no bytes, or not of a multiple of 16"),
        ((BARRIER, FILL.replace("[slots]", "[slots+8]")), "misaligned access of 16 bytes"),
        ((BARRIER, FILL.replace("[%x]", "[%x+4]")), "misaligned access of 16 bytes"),
        ((BARRIER, FILL.replace("[%x]", "[%x+16]")), "out of bounds of all global buffers: thread 0"),
        ((BARRIER, FILL.replace("[slots]", "[slots+1424]")), "out of bounds of 1536 bytes of shared memory"),
        (
            (BARRIER, FILL, FILL.replace("[slots]", "[slots+240]")),
            r"race on shared memory: .* write by block 0 thread 0: .*cp\.async\.bulk",
        ),
        ((BARRIER, FILL.replace("[slots]", "[slots+800]")), "is none for loads, stores and copies: block 0 thread 0"),
        ((BARRIER, "ld.shared.u32 %v, [barriers+4];"), "is none for loads, stores and copies: block 0 thread 0"),
        ((BARRIER, "@%upper st.shared.u64 [barriers], %x;"), "is none for loads, stores and copies: block 0 thread 32"),
        ((BARRIER, FILL, "@%first mbarrier.inval.shared::cta.b64 [barriers];"), "of copies under way is invalidated"),
        ((BARRIER, ANNOUNCE, FILL), "block 0 ends while bytes are copied into its shared memory"),
        ((BARRIER, FILL, ARRIVE), "256 bytes arrive in a phase that announces 0"),
        (
            (BARRIER, ANNOUNCE, f"@%upper bra MEET; {wait()} MEET: {SYNC}"),
            r"deadlock at phase barriers: .*: 'mbarrier\.try_wait",
        ),
    ],
)
def test_single_faults(steps: tuple[str, ...], problem: str) -> None:
    with pytest.raises(PTXError, match=problem):
        evaluate(*steps)


def test_a_place_can_be_used_again() -> None:
    again = f"{SYNC} @%first mbarrier.inval.shared::cta.b64 [barriers]; {SYNC}"
    steps = [BARRIER, ANNOUNCE, FILL, wait(), again]
    assert (evaluate(*steps, BARRIER, READ) == X).all()
    assert evaluate(*steps, "@%first st.shared.u32 [barriers], 5; @%first ld.shared.u32 %v, [barriers];")[0] == 5
    with pytest.raises(PTXError, match=r"race on shared memory: .* read by several threads: .*mbarrier\.inval"):
        evaluate(*steps[:-1], again.removeprefix(SYNC))


# ---- programmatic launches -------------------------------------------------------------------------------------------

PREVIOUS_ENDS = "@%first griddepcontrol.wait;"
TOUCH = "ld.global.u32 %v, [%z];"


def test_a_phase_tells_that_the_previous_launch_has_ended() -> None:
    y = evaluate(BARRIER, PREVIOUS_ENDS, ARRIVE, wait(), TOUCH, constants=("x", "y"))
    assert (y == 7).all()
    for steps in ((ARRIVE, PREVIOUS_ENDS, wait()), (PREVIOUS_ENDS, ARRIVE)):
        with pytest.raises(PTXError, match=r"z is touched before griddepcontrol.wait, .*: block 0 thread 1"):
            evaluate(BARRIER, *steps, TOUCH, constants=("x", "y"))


def test_a_copy_before_the_previous_launch_has_ended() -> None:
    copy = (BARRIER, ANNOUNCE, FILL, wait(), READ, PREVIOUS_ENDS)
    assert (evaluate(*copy, SYNC, constants=("x",)) == X).all()
    with pytest.raises(PTXError, match=r"x is touched before griddepcontrol.wait.*: .*cp\.async\.bulk"):
        evaluate(*copy, SYNC, constants=("y",))
