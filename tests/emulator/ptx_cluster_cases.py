"""Pairs of blocks that store into each other's shared memory: PTX with steps between a head and an end."""

from __future__ import annotations

import numpy as np
import pytest

from emulator import ptx
from emulator.ptx import PTXError

# {body} with 64 threads; at the end y[block][tid] = %v. %slot is the thread's own, %to is the same place in the other
# block of a pair, %second whether it is the block of rank 1.
TEMPLATE = """
.version 8.0
.target sm_90
.address_size 64
.visible .entry clusters(.param .u64 x, .param .u64 z, .param .u64 y)
{{
  .reg .pred %first, %second, %upper, %some, %done;
  .reg .b64 %x, %z, %y, %offset;
  .reg .b32 %tid, %v, %w, %slot, %to, %rank, %other, %i;
  .shared .align 16 .b8 slots[1024];
  .shared .align 8 .b8 barriers[64];
  mov.u32 %tid, %tid.x;
  mov.u32 %rank, %cluster_ctarank;
  setp.eq.u32 %first, %tid, 0;
  setp.eq.u32 %second, %rank, 1;
  setp.ge.u32 %upper, %tid, 32;
  mov.u32 %i, %ctaid.x;
  mad.lo.u32 %i, %i, 64, %tid;
  mul.wide.u32 %offset, %i, 4;
  ld.param.u64 %x, [x];
  ld.param.u64 %z, [z];
  ld.param.u64 %y, [y];
  add.u64 %y, %y, %offset;
  mov.u32 %slot, slots;
  mad.lo.u32 %slot, %tid, 4, %slot;
  xor.b32 %other, %rank, 1;
  mapa.shared::cluster.u32 %to, %slot, %other;
  mad.lo.u32 %w, %rank, 1000, %tid;
  mov.u32 %v, 0;
  {body}
  st.global.u32 [%y], %v;
  ret;
}}
"""
ARRIVE = "barrier.cluster.arrive.release.aligned;"
WAIT = "barrier.cluster.wait.acquire.aligned;"
SYNC = f"{ARRIVE} {WAIT}"
MAP = "mapa.shared::cluster.u32 %to, %slot, %other;"
STORE_W = "st.shared::cluster.u32 [%to], %w;"
READ = "ld.shared.u32 %v, [%slot];"
BLOCK = "bar.sync 0;"
X = np.zeros(80, np.uint32)
X = X[-X.ctypes.data % 32 // 4 :][:64]
X[:] = np.arange(100, 164)
THREADS = np.arange(64)
GIVEN = np.stack([1000 + THREADS, THREADS])  # what each block has after the other one's STORE_W


def evaluate(*steps: str, blocks: int = 2, cluster: int = 2, **options) -> np.ndarray:
    y = np.zeros((blocks, 64), np.uint32)
    source = TEMPLATE.format(body=" ".join(steps))
    ptx.launch(
        source, "clusters", (blocks, 1, 1), (64, 1, 1), [X, np.full(4, 7, np.uint32), y], cluster=cluster, **options
    )
    return y


def fails(problem: str, *steps: str, **options) -> None:
    with pytest.raises(PTXError, match=problem):
        evaluate(*steps, **options)


def only(condition: str, *steps: str, label: str) -> str:
    """Steps of the threads for which a predicate holds."""
    return " ".join([f"@!{condition} bra {label};", *steps, f"{label}:"])
