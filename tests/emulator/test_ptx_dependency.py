"""Programmatic dependent launches in the PTX emulator: what must wait, and what need not."""

from __future__ import annotations

import numpy as np
import pytest

from emulator import ptx
from emulator.ptx import PTXError

pytestmark = pytest.mark.gpu_emulated

# Every thread: y[tid] = w[tid] + x[tid], with {a} to {d} between the steps.
TEMPLATE = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry add(.param .u64 w, .param .u64 x, .param .u64 y)
{{
  .reg .pred %first;
  .reg .b64 %w, %x, %y, %offset;
  .reg .b32 %tid, %i, %j;
  mov.u32 %tid, %tid.x;
  setp.eq.u32 %first, %tid, 0;
  mul.wide.u32 %offset, %tid, 4;
  ld.param.u64 %w, [w];
  ld.param.u64 %x, [x];
  ld.param.u64 %y, [y];
  add.u64 %w, %w, %offset;
  add.u64 %x, %x, %offset;
  add.u64 %y, %y, %offset;
  {a}
  ld.global.u32 %i, [%w];
  {b}
  ld.global.u32 %j, [%x];
  add.u32 %i, %i, %j;
  {c}
  st.global.u32 [%y], %i;
  {d}
  ret;
}}
"""
WAIT = "griddepcontrol.wait;"
ONE_WAITS = "@%first griddepcontrol.wait;"


def run(constants: tuple[str, ...] | None = ("w",), blocks: int = 1, **steps: str) -> None:
    source = TEMPLATE.format(**{name: steps.get(name, "") for name in "abcd"})
    w, x = np.arange(64, dtype=np.uint32), np.full(64, 5, np.uint32)
    y = np.zeros(64, np.uint32)
    ptx.launch(source, "add", (blocks, 1, 1), (64, 1, 1), [w, x, y], constants=constants)
    assert (y == w + 5).all()


@pytest.mark.parametrize("steps", [{"a": WAIT}, {"b": WAIT}, {"b": f"{ONE_WAITS} bar.sync 0;"}, {"a": WAIT, "d": WAIT}])
def test_constants_before_the_wait_and_everything_after(steps: dict[str, str]) -> None:
    run(**steps)


@pytest.mark.parametrize("steps", [{}, {"c": WAIT}, {"b": ONE_WAITS}, {"b": f"bar.sync 0; {ONE_WAITS}"}])
def test_a_read_before_the_wait(steps: dict[str, str]) -> None:
    with pytest.raises(PTXError, match=r"x is touched before griddepcontrol.wait, .*: block 0 thread \d+.*ld.global"):
        run(**steps)


def test_a_write_before_the_wait() -> None:
    with pytest.raises(PTXError, match=r"y is touched before griddepcontrol.wait, .*: block 0 thread 0.*st.global"):
        run(("w", "x"), d=WAIT)


def test_an_atomic_before_the_wait() -> None:
    with pytest.raises(PTXError, match=r"x is touched before griddepcontrol.wait.*atom"):
        run(a="atom.global.add.u32 %j, [%x], 0;", b=WAIT)


def test_a_prefetch_before_the_wait() -> None:
    prefetch = "@%first cp.async.bulk.prefetch.L2.global [{}], {};"
    run(a=prefetch.format("%w", 256), b=WAIT)
    with pytest.raises(PTXError, match=r"x is touched before griddepcontrol.wait.*prefetch"):
        run(a=prefetch.format("%x", 256), b=WAIT)
    with pytest.raises(PTXError, match="takes a multiple of 16 bytes"):
        run(a=prefetch.format("%w", 40), b=WAIT)
    with pytest.raises(PTXError, match="misaligned access of 16 bytes"):
        run(a="cp.async.bulk.prefetch.L2.global [%w], 16;", b=WAIT)


def test_a_block_that_never_waits() -> None:
    leaves = "mov.u32 %j, %ctaid.x; setp.eq.u32 %first, %j, 1; @%first ret; griddepcontrol.wait;"
    with pytest.raises(PTXError, match=r"block 1 ends without griddepcontrol.wait"):
        run(blocks=2, b=leaves)


def test_other_launches_need_no_wait() -> None:
    run(None)
    run(None, a="griddepcontrol.launch_dependents;", b=WAIT)
