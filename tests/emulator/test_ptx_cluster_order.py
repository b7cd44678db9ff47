"""What the barrier of a cluster orders in the PTX emulator beside stores into other blocks: global memory, programmatic
launches, phase barriers and bulk copies."""

from __future__ import annotations

import pytest
from ptx_cluster_cases import ARRIVE, BLOCK, GIVEN, READ, STORE_W, SYNC, WAIT, X, evaluate, fails, only

from emulator.ptx import PTXError

pytestmark = pytest.mark.gpu_emulated

WRITE_Z = "and.pred %some, %first, %second; @%some st.global.u32 [%z], %w;"
READ_Z = "ld.global.u32 %v, [%z];"


def test_global_memory() -> None:
    read = f"@!%second {READ_Z}"
    assert (evaluate(WRITE_Z, SYNC, read)[0] == 1000).all()
    problem = "race on global memory: block 0 thread 0 .* after a write by block 1 thread 0"
    for steps in ((WRITE_Z, BLOCK, read), (ARRIVE, WRITE_Z, WAIT, read), (WRITE_Z, ARRIVE, read, WAIT)):
        fails(problem, *steps)
    second_of_grid = "mov.u32 %i, %ctaid.x; setp.eq.u32 %second, %i, 1;"
    fails(problem, second_of_grid, WRITE_Z, SYNC, read, cluster=1)


def test_a_block_tells_other_clusters_of_its_cluster() -> None:
    """Block 1 writes; block 0 releases after the barrier; block 2, of another cluster, acquires."""
    flag = "mov.u32 %i, %ctaid.x; setp.eq.u32 %some, %i, 0; and.pred %some, %some, %first;"
    tell = "fence.acq_rel.gpu; @%some atom.global.add.u32 %i, [%z+4], 1;"
    hear = "setp.eq.u32 %some, %i, 2; and.pred %some, %some, %first; @!%some bra END; AGAIN:"
    hear += "ld.volatile.global.u32 %i, [%z+4]; setp.eq.u32 %done, %i, 7; @%done bra AGAIN; fence.acq_rel.gpu;"
    leave = "mov.u32 %i, %ctaid.x; setp.ge.u32 %done, %i, 2; @%done bra HEAR;"
    body = (leave, WRITE_Z, SYNC, flag, tell, "bra END; HEAR:", hear, READ_Z, "END:")
    assert evaluate(*body, blocks=4)[2, 0] == 1000
    fails("race on global memory: block 2 thread 0 .* block 1 thread 0", *(s for s in body if s != SYNC), blocks=4)


def test_the_previous_launch_has_ended() -> None:
    waits = "and.pred %some, %first, %second; @%some griddepcontrol.wait;"
    touch = "ld.global.u32 %v, [%x];"
    assert (evaluate(waits, SYNC, touch, constants=("z",)) == 100).all()
    for steps in ((SYNC, waits, BLOCK), (ARRIVE, waits, WAIT), (waits, ARRIVE)):
        with pytest.raises(PTXError, match=r"x is touched before griddepcontrol.wait, .*: block 0 thread 0"):
            evaluate(*steps, touch, WAIT, constants=("z",))


def test_what_is_told_in_a_later_phase() -> None:
    """The upper warps wait late for the first phase, when the others have arrived for the second."""
    late = only("%upper", ARRIVE, "ld.volatile.global.u32 %v, [%z];", WAIT, "{}", ARRIVE, WAIT, "{}", "ret;", label="A")
    others = (SYNC, "griddepcontrol.wait;", SYNC)
    touch = "ld.global.u32 %v, [%x];"
    evaluate(late.format("", touch), *others, constants=("z",))
    with pytest.raises(PTXError, match=r"x is touched before griddepcontrol.wait, .*: block 0 thread 32"):
        evaluate(late.format(touch, ""), *others, constants=("z",))


# ---- phase barriers and bulk copies ----------------------------------------------------------------------------------

INIT = f"@%first mbarrier.init.shared::cta.b64 [barriers], 1; @%first fence.proxy.async.shared::cta; {BLOCK}"
FILL = """@%first mbarrier.arrive.expect_tx.shared::cta.b64 _, [barriers], 256;
  @%first cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [slots], [%x], 256, [barriers];"""
LANDED = "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 %done, [barriers], 0; @!%done bra AGAIN;"


def test_a_store_over_a_copy() -> None:
    """The copy must have landed for somebody of its block who then arrives."""
    assert (evaluate(INIT, FILL, LANDED, READ, SYNC) == X).all()
    assert (evaluate(INIT, FILL, LANDED, SYNC, STORE_W, SYNC, READ) == GIVEN).all()
    one_warp = only("%upper", LANDED, label="OVER")
    assert (evaluate(INIT, FILL, one_warp, SYNC, STORE_W, SYNC, READ) == GIVEN).all()
    problem = "race on shared memory: block 0 thread 0 .* after a write by block 1 thread 0: 'st.shared::cluster"
    fails(problem, INIT, FILL, SYNC, STORE_W, LANDED, SYNC)
    fails(problem, INIT, FILL, ARRIVE, LANDED, WAIT, STORE_W, SYNC)


def test_a_copy_over_a_store() -> None:
    assert (evaluate(INIT, SYNC, STORE_W, SYNC, FILL, LANDED, READ) == X).all()
    fails(r"race on shared memory: block 0 thread 0 .* block 1 thread 0: '.*cp\.async", INIT, SYNC, STORE_W, FILL, SYNC)


def test_a_store_over_a_phase_barrier() -> None:
    over = "mapa.shared::cluster.u32 %to, barriers, %other; @%first st.shared::cluster.u32 [%to], %w;"
    fails("the memory of a phase barrier is none for .* stores .*: block 0 thread 0", INIT, SYNC, over, SYNC)


def test_waits_for_a_phase_and_for_the_cluster() -> None:
    upper = only("%upper", LANDED, SYNC, "ret;", label="LOWER")
    fails("deadlock at phase barriers: .*; 64 at the cluster barrier, among them block 0 thread 0", INIT, upper, SYNC)


def test_a_phase_tells_of_the_cluster() -> None:
    """The lower warp waits for the cluster and arrives at a phase barrier; the upper one waits for that phase."""
    lower = ("@%first mbarrier.arrive.shared::cta.b64 _, [barriers];", READ)
    upper = only("%upper", ARRIVE, LANDED, READ, WAIT, "bra DONE;", label="LOWER")
    body = (INIT, SYNC, STORE_W, upper, ARRIVE, WAIT, *lower, "DONE:")
    assert (evaluate(*body) == GIVEN).all()
    fails(
        "race on shared memory: block 0 thread 32 .* block 1 thread 32", *body[:3], upper.replace(LANDED, ""), *body[4:]
    )
