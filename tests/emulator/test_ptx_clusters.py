"""Clusters in the PTX emulator: nvcc's code, right and with one fault each; single instructions and faults."""

from __future__ import annotations

import re
from enum import IntEnum

import numpy as np
import pytest
from ptx_cluster_cases import (
    ARRIVE,
    BLOCK,
    GIVEN,
    MAP,
    READ,
    STORE_W,
    SYNC,
    TEMPLATE,
    THREADS,
    WAIT,
    X,
    evaluate,
    fails,
    only,
)
from test_fiber import KERNELS

from emulator import build, ptx
from emulator.ptx import PTXError, TrafficReport

pytestmark = pytest.mark.gpu_emulated

SOURCE = KERNELS / "ptx_clusters.cu"
names = re.search(r"enum class Way : int \{(.*?)\};", SOURCE.read_text(), re.DOTALL).group(1)
Way = IntEnum("Way", [(name, number) for number, name in enumerate(re.findall(r"\bk(\w+),", names))])
STORE = r"'st\.shared::cluster\..* at PTX line \d+ \(cluster\.h:\d+, inlined at ptx_clusters\.cu:\d+\)"


@pytest.fixture(scope="module")
def code() -> str:
    return build.ptx(SOURCE, "sm_90")


# ---- nvcc's code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"resident": 1}, {"resident": 7}, {"seed": 1}])
@pytest.mark.parametrize(("blocks", "clusters"), [(1, 3), (2, 1), (3, 2), (4, 2), (8, 1), (16, 2)])
def test_exchange(code: str, blocks: int, clusters: int, options: dict[str, int]) -> None:
    count = blocks * clusters
    x = np.random.default_rng(0).integers(0, 1000, (clusters, 1, blocks, 64)).astype(np.uint32)
    y = np.zeros((clusters, blocks, blocks, 64), np.uint32)
    report = ptx.launch(code, "exchange", (count, 1, 1), (64, 1, 1), [x, y, blocks], cluster=blocks, **options)
    assert (y == x + np.arange(blocks, dtype=np.uint32)[:, None]).all()
    stores = count * (blocks - 1) * 2
    assert (report.remote_stores, report.remote_bytes) == (stores, 128 * stores)
    assert list(report.writes) == ["exchange_param_1"]


def hand_on(code: str, way: str, blocks: int = 4, clusters: int = 2, steps: int = 5, **options) -> TrafficReport:
    """The result is judged bit for bit."""
    count = blocks * clusters
    x = np.random.default_rng(0).integers(0, 1000, (clusters, blocks, steps, 64, 4)).astype(np.uint32)
    y = np.zeros((clusters, blocks, 64, 4), np.uint32)
    expected = np.zeros_like(y)
    expected[..., 0], expected[..., 1], expected[..., 3] = np.arange(64), np.arange(blocks)[:, None], 1
    for step in range(steps):
        expected = np.roll(expected, 1, axis=1)[:, :, ::-1] + x[:, :, step]
    arguments = [x, y, blocks, steps, int(Way[way])]
    options = {"dynamic_bytes": 2 * 64 * 16, "cluster": blocks} | options
    report = ptx.launch(code, "hand_on", (count, 1, 1), (64, 1, 1), arguments, **options)
    np.testing.assert_array_equal(y, expected)
    return report


@pytest.mark.parametrize("blocks", [1, 2, 16])
def test_steps(code: str, blocks: int) -> None:
    hand_on(code, "Right", blocks)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("way", "problem"),
    [
        ("OneBuffer", f"race on shared memory: block 0 thread 0 .* after a read by block 1 thread 63: {STORE}"),
        ("ReadsBeforeTheWait", "race on shared memory: block 0 thread 32 .* a write by block 3 thread 31: 'ld.shared"),
        ("ReadsBeforeTheBarrier", f"race on shared memory: .* after a read by block 1 thread 31: {STORE}"),
        ("StoresBeforeTheFirstWait", f"a block that may not have started, .*: block 0 thread 0: {STORE}"),
        ("StoresBetween", "race on shared memory: block 0 thread 0 .* a write by block 3 thread 63: 'ld.shared"),
        (
            "StoresAtTheEnd",
            rf"block 1 ends before what block 0 thread \d+ stored to its shared memory was waited for: {STORE}",
        ),
        ("LeavesBeforeTheEnd", f"block 3 ends before what block 2 thread 0 stored to its shared memory .*: {STORE}"),
        ("StoresToItsOwnSlotToo", r"race on shared memory: .* a write by block 3 thread 0: 'st\.shared\.v4"),
        ("StoresToOneBlock", f"race on shared memory: block 1 thread 0 .* a write by block 0 thread 0: {STORE}"),
        ("RankBeyondTheCluster", f"a rank beyond the cluster of 4 blocks: block 3 thread 0: {STORE}"),
        ("BeyondSharedMemory", f"out of bounds of 2048 bytes of shared memory: thread 197 of the launch, .*{STORE}"),
        ("ArrivesTwice", r"arrives at the cluster barrier again without a wait: .*: 'barrier\.cluster\.arrive"),
        ("WaitsTwice", r"waits at the cluster barrier without having arrived: .*: 'barrier\.cluster\.wait"),
        ("OneBlockLeaves", "ends between arriving and waiting at the cluster barrier: block 3 thread 0: 'ret'"),
    ],
)
def test_steps_with_a_fault(code: str, way: str, problem: str, seed: int) -> None:
    with pytest.raises(PTXError, match=problem):
        hand_on(code, way, seed=seed)


def test_launches_that_do_not_fit(code: str) -> None:
    with pytest.raises(ValueError, match="cluster = 3: allowed are 1 to 16 blocks that divide 8"):
        hand_on(code, "Right", cluster=3)
    with pytest.raises(ValueError, match="cluster = 32: allowed"):
        hand_on(code, "Right", blocks=32)
    with pytest.raises(PTXError, match="a rank beyond the cluster of 1 blocks"):
        hand_on(code, "Right", cluster=1)


# ---- single instructions ---------------------------------------------------------------------------------------------


def test_special_registers() -> None:
    wanted = {
        "%cluster_ctarank": [0, 1, 2, 0, 1, 2],
        "%cluster_nctarank": [3] * 6,
        "%clusterid.x": [0, 0, 0, 1, 1, 1],
        "%nclusterid.x": [2] * 6,
        "%cluster_ctaid.x": [0, 1, 2, 0, 1, 2],
        "%cluster_nctaid.y": [1] * 6,
    }
    for register, values in wanted.items():
        assert evaluate(f"mov.u32 %v, {register};", blocks=6, cluster=3)[:, 0].tolist() == values
    explicit = "mov.pred %some, %is_explicit_cluster; selp.u32 %v, 1, 0, %some;"
    assert evaluate(explicit).all()
    assert not evaluate(explicit, cluster=1).any()


def test_a_store() -> None:
    assert (evaluate(SYNC, STORE_W, SYNC, READ) == GIVEN).all()
    assert (evaluate(SYNC, STORE_W, SYNC, READ, blocks=4).reshape(2, 2, 64) == GIVEN).all()
    unaligned = SYNC.replace(".aligned", "").replace(".release", "").replace(".acquire", "")
    assert (evaluate(unaligned, STORE_W, unaligned, READ) == GIVEN).all()


@pytest.mark.parametrize("width", [2, 4])
def test_a_vector(width: int) -> None:
    values = ", ".join(["%w", "%tid", "%rank", "7"][:width])
    scale = f"mov.u32 %slot, slots; mad.lo.u32 %slot, %tid, {4 * width}, %slot; {MAP}"
    steps = (scale, SYNC, f"st.shared::cluster.v{width}.u32 [%to], {{{values}}};", SYNC)
    wanted = [GIVEN, [THREADS] * 2, [[1] * 64, [0] * 64], 7]
    for element in range(width):
        assert (evaluate(*steps, f"ld.shared.u32 %v, [%slot+{4 * element}];") == wanted[element]).all()


def test_the_own_block() -> None:
    """By either kind of address, without a barrier."""
    for address in ("%slot", "%to"):
        steps = ("mapa.shared::cluster.u32 %to, %slot, %rank;", f"st.shared::cluster.u32 [{address}], %w;")
        for load in (READ, "ld.shared::cluster.u32 %v, [%slot];", "ld.shared::cluster.u32 %v, [%to];"):
            assert (evaluate(*steps, load) == GIVEN[::-1]).all()
    both = "and.b32 %i, %tid, 1; xor.b32 %i, %i, %rank; mapa.shared::cluster.u32 %to, %slot, %i;"
    y = evaluate(both, SYNC, STORE_W, SYNC, READ)
    assert (y == np.where(THREADS % 2, GIVEN, GIVEN[::-1])).all()


def test_a_store_is_garbage_before_the_wait() -> None:
    old, unjudged = "st.shared.u32 [%slot], 5;", READ.replace("ld.shared", "ld.volatile.shared")
    assert (evaluate(old, SYNC, unjudged, SYNC) == 5).all()
    assert (evaluate(old, SYNC, STORE_W, unjudged, SYNC) == 0xFFFFFFFF).all()
    assert (evaluate(old, SYNC, ARRIVE, STORE_W, WAIT, unjudged, SYNC) == 0xFFFFFFFF).all()
    assert (evaluate(old, SYNC, ARRIVE, STORE_W, WAIT, SYNC, unjudged) == GIVEN).all()


def test_an_arrival_hands_on_what_its_thread_knows() -> None:
    """The upper warp stores after it has arrived; the lower one arrives after having met it."""
    upper = only("%upper", ARRIVE, STORE_W, BLOCK, WAIT, "bra DONE;", label="LOWER")
    given = evaluate(SYNC, upper, BLOCK, ARRIVE, WAIT, "DONE:", BLOCK, READ.replace("ld", "@%upper ld"))
    assert (given[:, 32:] == GIVEN[:, 32:]).all()
    upper = upper.replace(BLOCK, "")
    fails("race on shared memory: block 0 thread 32 .* block 1 thread 32: 'ld", SYNC, upper, SYNC, "DONE:", READ)


def test_one_warp_waits_and_tells_the_others() -> None:
    upper = only("%upper", ARRIVE, BLOCK, STORE_W, WAIT, "bra DONE;", label="LOWER")
    assert (evaluate(upper, ARRIVE, WAIT, BLOCK, "DONE:", SYNC, READ)[:, 32:] == GIVEN[:, 32:]).all()
    fails("may not have started", upper.replace(BLOCK, ""), ARRIVE, WAIT, "DONE:", SYNC, READ)


def test_threads_that_have_returned_are_not_waited_for() -> None:
    for leaves in ("%upper", "%first"):
        y = evaluate(f"@{leaves} ret;", SYNC, STORE_W, SYNC, READ)
        stay = THREADS < 32 if leaves == "%upper" else THREADS > 0
        assert (y == np.where(stay, GIVEN, 0)).all()
    leaves_later = f"{STORE_W} {BLOCK} @%upper ret;"
    shifted = "xor.b32 %slot, %slot, 128; ld.shared.u32 %v, [%slot];"
    y = evaluate(SYNC, leaves_later, SYNC, shifted)
    assert (y[:, :32] == GIVEN[:, 32:]).all()
    fails(r"block \d ends before what block \d thread 32 stored", SYNC, leaves_later.replace(BLOCK, ""), SYNC)


def test_the_last_thread_to_come_returns() -> None:
    late = only("%upper", "ld.volatile.global.u32 %w, [%z];", "ret;", label="A")
    assert evaluate(late, SYNC, "mov.u32 %v, 1;").tolist() == [[1] * 32 + [0] * 32] * 2


def test_what_returned_threads_did_in_their_own_block_is_over() -> None:
    leave = f"{READ} @%upper ret;"
    other_half = "xor.b32 %slot, %slot, 128; xor.b32 %to, %to, 128;"
    y = evaluate("st.shared.u32 [%slot], 5;", leave, other_half, SYNC, STORE_W, SYNC, READ)
    assert (y == np.where(THREADS < 32, GIVEN, 0)).all()
    y = evaluate(leave, other_half, BLOCK, "st.shared.u32 [%slot], 6;", READ, SYNC)
    assert (y == np.where(THREADS < 32, 6, 0)).all()


def test_a_block_barrier_is_no_barrier_of_the_cluster() -> None:
    only_second = only("%second", BLOCK, label="A")
    store, read = f"@%second {STORE_W}", f"@!%second {READ}"
    assert (evaluate(SYNC, only_second, store, SYNC, read)[0] == GIVEN[0]).all()
    fails("race .* block 0 thread 0 .* after a write by block 1 thread 0", SYNC, only_second, store, read, SYNC)
    fails("race .* block 1 thread 0 .* after a read by block 0 thread 0", SYNC, read, only_second, store, SYNC)


def test_a_block_that_has_returned() -> None:
    assert (evaluate("@%second ret;", SYNC, SYNC, "mov.u32 %v, 1;") == [[1] * 64, [0] * 64]).all()
    fails("stores to a block that has ended: block 0 thread 0", "@%second ret;", SYNC, STORE_W, SYNC)


def test_a_write_after_a_store_and_a_store_after_a_write() -> None:
    write = "st.shared.u32 [%slot], 5;"
    assert (evaluate(SYNC, STORE_W, SYNC, write, READ) == 5).all()
    assert (evaluate(write, SYNC, STORE_W, SYNC, READ) == GIVEN).all()
    fails("race .* block 0 thread 0 .* after a write by block 1 thread 0: 'st.shared.u32", SYNC, STORE_W, write, SYNC)
    fails("race .* block 0 thread 0 .* after a write by block 1 thread 0: 'st.shared::cl", SYNC, write, STORE_W, SYNC)
    fails("race .* block 0 thread 0 .* after a write by block 1", SYNC, ARRIVE, write, WAIT, STORE_W, SYNC)


def test_two_stores_to_one_place() -> None:
    fails("race .* block 0 thread 1 .* after a write by block 0 thread 0", SYNC, only("%first", STORE_W, label="A"),
          "mapa.shared::cluster.u32 %to, slots, %other;", STORE_W, SYNC)  # fmt: skip
    one_place = "mov.u32 %i, 0; mapa.shared::cluster.u32 %to, slots, %i; @!%first bra END;"
    fails("race .* block 1 thread 0 .* after a write by block 2 thread 0", "@%first mov.u32 %v, 1;", SYNC,
          only("%first", "setp.eq.u32 %some, %rank, 0; @%some bra OVER;", one_place, STORE_W, "END: OVER:", label="L"),
          SYNC, blocks=3, cluster=3)  # fmt: skip
    again = (SYNC, STORE_W, "add.u32 %w, %w, 1;", STORE_W, SYNC, READ)
    assert (evaluate(*again) == GIVEN + 1).all()
    in_turn = (SYNC, STORE_W, BLOCK, "xor.b32 %to, %to, 128;", STORE_W, SYNC, READ)
    assert (evaluate(*in_turn) == GIVEN[:, THREADS ^ 32]).all()
    fails("race .* block 0 thread 0 .* after a write by block 0 thread 32", *in_turn[:2], *in_turn[3:])


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((SYNC, STORE_W.replace("%to", "%to+2"), SYNC), "misaligned access of 4 bytes: thread 0"),
        ((SYNC, STORE_W.replace("%to", "%to+1024"), SYNC), "out of bounds of 1088 bytes of shared memory: thread 16"),
        ((SYNC, "mapa.shared::cluster.u32 %to, %slot, 2;", STORE_W), "a rank beyond the cluster of 2 blocks"),
        ((SYNC, "mapa.shared::cluster.u32 %to, %slot, -1;", STORE_W), "a rank beyond the cluster of 2 blocks"),
        (("mapa.shared::cluster.u32 %to, %to, 1;",), "takes an address in the own block's shared memory"),
        (("mapa.u64 %x, %z, 1;",), "mapa.shared::cluster alone"),
        ((SYNC, "ld.shared::cluster.u32 %v, [%to];"), "loads from the own block alone: block 0 thread 0"),
        ((SYNC, "st.volatile.shared::cluster.u32 [%to], %w;"), "weak ones alone"),
        ((SYNC, STORE_W.replace("::cluster", "")), "out of bounds of 1088 bytes of shared memory"),
        ((STORE_W, SYNC), "may not have started, before a wait at the cluster barrier: block 0 thread 0"),
        ((ARRIVE, STORE_W, WAIT), "may not have started"),
        ((ARRIVE,), "ends between arriving and waiting at the cluster barrier: block 0 thread 0: 'ret'"),
        ((WAIT,), "waits at the cluster barrier without having arrived: block 0 thread 0"),
        ((ARRIVE, ARRIVE), "arrives at the cluster barrier again without a wait: block 0 thread 0"),
        (("barrier.cluster.arrive.relaxed.aligned;",), "arrive.release and wait.acquire alone"),
        ((SYNC, STORE_W), r"block \d ends before what block \d thread 0 stored .*'st\.shared::cluster"),
        (
            (SYNC, STORE_W, only("%upper", BLOCK, label="A"), SYNC),
            "deadlock: 128 threads wait, .*; 64 at the cluster ba",
        ),
        ((SYNC, STORE_W, only("%second", SYNC, label="A")), "block 0 ends before what block 1 thread 0 stored"),
    ],
)
def test_single_faults(steps: tuple[str, ...], problem: str) -> None:
    fails(problem, *steps)


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ((only("%first", SYNC, label="A"), SYNC), "lanes of a warp come apart to an aligned barrier: block 0 thread 1"),
        ((f"@%first {ARRIVE}", WAIT), "lanes of a warp come apart to an aligned barrier"),
        ((only("%first", BLOCK, label="A"), SYNC), "deadlock"),
    ],
)
def test_a_warp_that_comes_apart(steps: tuple[str, ...], problem: str) -> None:
    fails(problem, *steps)


def test_a_warp_comes_together() -> None:
    """One lane runs behind the others for a while."""
    behind = only("%first", "ld.volatile.global.u32 %v, [%z];", label="A")
    assert (evaluate(behind, SYNC, STORE_W, behind.replace("A", "B"), SYNC, READ) == GIVEN).all()


# ---- traffic ---------------------------------------------------------------------------------------------------------


def traffic(*steps: str, blocks: int = 2) -> TrafficReport:
    y = np.zeros((blocks, 64), np.uint32)
    source = TEMPLATE.format(body=" ".join([SYNC, *steps, SYNC]))
    return ptx.launch(source, "clusters", (blocks, 1, 1), (64, 1, 1), [X, np.full(4, 7, np.uint32), y], cluster=blocks)


def test_traffic() -> None:
    report = traffic(STORE_W)
    assert (report.remote_stores, report.remote_bytes) == (4, 4 * 128)
    assert (report.shared_requests, report.worst_bank_conflict) == (0, 1)
    assert "other blocks' shared memory: 4 stores of 512 bytes" in str(report)
    apart = "and.b32 %i, %tid, 7; mov.u32 %slot, slots; mad.lo.u32 %slot, %i, 128, %slot; shr.u32 %i, %tid, 3;"
    conflict = traffic(apart, f"mad.lo.u32 %slot, %i, 4, %slot; {MAP}", STORE_W)
    assert conflict.worst_bank_conflict == 8
    assert conflict.worst_bank_conflict_at.startswith("PTX line")
    # Even and odd lanes to a block each, in the same banks.
    target = "and.b32 %v, %tid, 1; add.u32 %i, %rank, 1; add.u32 %i, %i, %v; rem.u32 %i, %i, 3;"
    place = (
        "mov.u32 %slot, slots; mad.lo.u32 %slot, %v, 128, %slot; shr.u32 %v, %tid, 1; mad.lo.u32 %slot, %v, 4, %slot;"
    )
    own = "mad.lo.u32 %slot, %rank, 256, %slot; mapa.shared::cluster.u32 %to, %slot, %i;"
    two_targets = traffic(target, place, own, STORE_W, blocks=3)
    assert (two_targets.remote_stores, two_targets.worst_bank_conflict) == (12, 1)
    report += conflict
    assert (report.remote_stores, report.remote_bytes) == (8, 1024)
