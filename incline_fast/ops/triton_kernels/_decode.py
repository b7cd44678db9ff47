"""The fused op for a few tokens, in one launch.

The kernel is a list of work items in three phases, of which a later one reads what an earlier one wrote:

    down    z[s, i, :] = down_g r_i over the s-th piece of the hidden size      (low rank only)
    up      mapped[i, :] = up_g (sum_s z[s, i, :]), or up_g r_i for a dense map
    rows    r' and its norm, one row per item

A program draws its item from a counter, so that items begin in the order of their numbers, whatever order the hardware
starts programs in. A program that waits therefore waits for items whose programs are already running, and those wait
for nothing but still earlier ones: the first unfinished item never waits, and no program has to be resident together
with one that has not begun. (The argument of single-pass scan with decoupled look-back: Merrill and Garland, NVIDIA
NVR-2016-002, section 4.)

What a program wrote is published by a barrier, after which one thread adds to the phase's counter with release
semantics at device scope; one thread of a waiting program reads that counter with acquire semantics, and a barrier
hands the order on to the others. Causality order is transitive over such a chain (PTX ISA, memory consistency model).
The last row to finish sets all counters to zero for the next launch.

A programmatic launch (``set_programmatic_launch``) may begin before the one ahead of it has ended. Which weights a
program will read it learns from a counter, which may be in use by the launch ahead; so a program waits for that one's
end first, and what overlaps is the launch itself.

Sums have one order whatever num_tokens, the batch and the tuning are: products are added along k in steps of BLOCK_K,
the pieces of the low-rank product one after another, and a row's statistics in the tree that BLOCK_D and the number of
warps define.
"""

from __future__ import annotations

import os

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from incline_fast.ops.triton_kernels._rows import WARPS, finish_row

__all__ = ["MAX_TOKENS_DENSE", "MAX_TOKENS_LOW_RANK", "decode", "num_counters", "num_items", "suitable"]

MAX_TOKENS_DENSE, MAX_TOKENS_LOW_RANK = 32, 16
"""Widest tiles of tokens that the registers hold. The weights are read once per tile, after the first one from L2."""

SPIN_LIMIT = tl.constexpr(int(os.environ.get("INCLINE_FAST_SPIN_LIMIT") or 0))
"""Turns of a waiting loop after which a program traps, for finding faults; 0 waits without counting."""


def num_counters(tiles: int) -> int:
    """int32 counters of a launch: items drawn, rows finished, and finished ``down`` and ``up`` items of each tile."""
    return 2 + 2 * tiles


def num_items(tiles: int, slots: int, splits: int, rank: int, hidden: int, rows: int, block: int) -> int:
    """Work items of a launch, which is its number of programs; rank is 0 for a dense map."""
    return tiles * slots * (splits * triton.cdiv(rank, block) + triton.cdiv(hidden, block)) + rows


@triton.jit
def _arrive(counter):
    """Publish what all threads of the program have written, then count one item as finished."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def _wait(counter, items):
    """Return when ``items`` items are finished; what they wrote can then be read."""
    turns = 0
    while tl.atomic_add(counter, 0, sem="acquire", scope="gpu") < items:
        if SPIN_LIMIT > 0:
            turns += 1
            if turns > SPIN_LIMIT:
                tl.inline_asm_elementwise("trap; mov.u32 $0, 0;", "=r", [], tl.int32, is_pure=False, pack=1)


@triton.jit
def _finished_down(counters, tile):
    return counters + 2 + 2 * tile


@triton.jit
def _finished_up(counters, tile):
    return counters + 3 + 2 * tile


@triton.jit
def _rows_of_slot(row_map, tile, slot, num_maps, num_tokens, TOKENS: tl.constexpr):
    """Rows of a tile of tokens, which of them use the slot-th distinct map of the tile, and that map (-1: none)."""
    index = tl.arange(0, TOKENS)
    rows = tile * TOKENS + index
    live = rows < num_tokens
    map = tl.full([], 0, tl.int32)
    mine = live
    if row_map is not None:
        maps = tl.load(row_map + rows, mask=live, other=-1)
        maps = tl.where(maps < num_maps, maps, -1)
        before = (maps[None, :] == maps[:, None]) & (index[None, :] < index[:, None])
        first = (maps >= 0) & (tl.sum(before.to(tl.int32), 1) == 0)
        chosen = first & (tl.cumsum(first.to(tl.int32), 0) == slot + 1)
        map = tl.max(tl.where(chosen, maps, -1), 0)
        mine = live & (maps == map)
    return rows.to(tl.int64), mine, map.to(tl.int64)


@triton.jit
def _multiply(weight, value, sums, OPERAND: tl.constexpr, PARTS: tl.constexpr):
    """``sums + weight @ value``, the fp32 ``value`` being split into PARTS numbers that the tensor cores take exactly.

    OPERAND is their type, "fp16", "bf16" or "tf32"; "fp32" multiplies without tensor cores.
    """
    if OPERAND == "fp32":
        sums = tl.dot(weight, value, sums, input_precision="ieee")
    elif OPERAND == "tf32":
        for _ in tl.static_range(PARTS):
            # Tensor cores read the upper 19 bits. Cutting the others off leaves a rest that is exact.
            piece = (value.to(tl.int32, bitcast=True) & -8192).to(tl.float32, bitcast=True)
            sums = tl.dot(weight.to(tl.float32), piece, sums, input_precision="tf32")
            value -= piece
    else:
        narrow: tl.constexpr = tl.float16 if OPERAND == "fp16" else tl.bfloat16
        for _ in tl.static_range(PARTS):
            piece = value.to(narrow)
            sums = tl.dot(weight.to(narrow), piece, sums)
            value -= piece.to(tl.float32)
    return sums


@triton.jit
def _weight_tile(matrix, columns, num_columns, ks, depth, end):
    """``matrix[columns, ks]`` of a contiguous ``[num_columns, depth]``; zero from ``end`` on."""
    mask = (columns < num_columns)[:, None] & (ks < end)[None, :]
    return tl.load(matrix + columns.to(tl.int64)[:, None] * depth + ks[None, :], mask=mask, other=0.0)


@triton.jit
def _input_tile(inputs, rows, mine, ks, end):
    """``r[rows, ks]`` transposed, in fp32, with r = x (+ residual)."""
    x, residual, x_stride, residual_stride = inputs
    mask = (ks < end)[:, None] & mine[None, :]
    value = tl.load(x + rows[None, :] * x_stride + ks[:, None], mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        others = residual + rows[None, :] * residual_stride + ks[:, None]
        value += tl.load(others, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _factor_tile(
    z, rows, mine, ks, num_tokens, rank, SPLITS: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr
):
    """``sum_s z[s, rows, ks]`` transposed. ".cg": other multiprocessors wrote z, so it is read from L2."""
    mask = (ks < rank)[:, None] & mine[None, :]
    value = tl.zeros([BLOCK_K, TOKENS], tl.float32)
    for split in range(SPLITS):
        pieces = z + (split * num_tokens + rows[None, :]) * rank + ks[:, None]
        value += tl.load(pieces, mask=mask, other=0.0, cache_modifier=".cg")
    return value


@triton.jit
def _project_input(
    inputs, matrix, columns, num_columns, rows, mine, hidden, begin, end,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """``matrix[columns, begin:end] @ r[rows, begin:end]^T``, ``[BLOCK_N, TOKENS]``."""
    sums = tl.zeros([BLOCK_N, TOKENS], tl.float32)
    for k in range(begin, end, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)
        weight = _weight_tile(matrix, columns, num_columns, ks, hidden, end)
        sums = _multiply(weight, _input_tile(inputs, rows, mine, ks, end), sums, OPERAND, PARTS)
    return sums


@triton.jit
def _project_factor(
    z, scale, matrix, columns, num_columns, rows, mine, num_tokens, rank, SPLITS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """``matrix[columns] @ (scale sum_s z[s, rows])^T``, ``[BLOCK_N, TOKENS]``."""
    sums = tl.zeros([BLOCK_N, TOKENS], tl.float32)
    for k in range(0, rank, BLOCK_K):
        ks = k + tl.arange(0, BLOCK_K)
        weight = _weight_tile(matrix, columns, num_columns, ks, rank, rank)
        value = _factor_tile(z, rows, mine, ks, num_tokens, rank, SPLITS, BLOCK_K, TOKENS)
        if scale is not None:
            value *= tl.load(scale + ks, mask=ks < rank, other=0.0)[:, None]
        sums = _multiply(weight, value, sums, OPERAND, PARTS)
    return sums


@triton.jit
def _store_mapped(mapped, sums, columns, rows, mine, hidden):
    mask = (columns < hidden)[:, None] & mine[None, :]
    tl.store(mapped + rows[None, :] * hidden + columns[:, None], sums, mask=mask)


@triton.jit
def _down_item(
    inputs, down, z, group, item, num_tokens, rank, hidden, SPLITS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """``z[split, rows, block] = down[block] r[rows]`` over one piece of the hidden size."""
    rows, mine, map = group
    if map >= 0:
        matrix = down + map * rank * hidden
        columns = item // SPLITS * BLOCK_N + tl.arange(0, BLOCK_N)
        split = item % SPLITS
        piece = tl.cdiv(tl.cdiv(hidden, SPLITS), BLOCK_K) * BLOCK_K
        begin, end = split * piece, tl.minimum(split * piece + piece, hidden)
        sums = _project_input(
            inputs, matrix, columns, rank, rows, mine, hidden, begin, end, TOKENS, BLOCK_N, BLOCK_K, OPERAND, PARTS
        )
        places = z + (split * num_tokens + rows[None, :]) * rank + columns[:, None]
        tl.store(places, sums, mask=(columns < rank)[:, None] & mine[None, :])


@triton.jit
def _up_item(
    z, down_scale, up, mapped, group, block, num_tokens, rank, hidden, SPLITS: tl.constexpr,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """``mapped[rows, block] = up[block] z[rows]``."""
    rows, mine, map = group
    if map >= 0:
        matrix = up + map * hidden * rank
        columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
        if down_scale is not None:
            down_scale += map * rank
        sums = _project_factor(
            z, down_scale, matrix, columns, hidden, rows, mine, num_tokens, rank, SPLITS,
            TOKENS, BLOCK_N, BLOCK_K, OPERAND, PARTS
        )  # fmt: skip
        _store_mapped(mapped, sums, columns, rows, mine, hidden)


@triton.jit
def _dense_item(
    inputs, up, mapped, group, block, hidden,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, OPERAND: tl.constexpr, PARTS: tl.constexpr
):  # fmt: skip
    """``mapped[rows, block] = up[block] r[rows]``."""
    rows, mine, map = group
    if map >= 0:
        matrix = up + map * hidden * hidden
        columns = block * BLOCK_N + tl.arange(0, BLOCK_N)
        sums = _project_input(
            inputs, matrix, columns, hidden, rows, mine, hidden, 0, hidden, TOKENS, BLOCK_N, BLOCK_K, OPERAND, PARTS
        )
        _store_mapped(mapped, sums, columns, rows, mine, hidden)


def suitable(configs: list[triton.Config], named_args: dict, **kwargs) -> list[triton.Config]:
    """Configurations that load 16 bytes a thread and fit the shared memory.

    A tile of weights has 16 bytes for every thread, or its loads would be narrower. A stage of the pipeline holds such
    a tile, one of x, and one of the residual, for the widest tile of tokens, because a configuration is kept for all.
    """
    arguments = {**named_args, **kwargs}
    driver = triton.runtime.driver.active
    limit = driver.utils.get_device_properties(driver.get_current_device())["max_shared_mem"]
    activations = sum(arguments[name].element_size() for name in ("x", "residual") if arguments[name] is not None)
    weights = arguments["up"].element_size()

    def tile(config: triton.Config) -> int:
        return config.kwargs["BLOCK_N"] * arguments["BLOCK_K"] * weights

    def size(config: triton.Config) -> int:
        return config.num_stages * (tile(config) + arguments["BLOCK_K"] * MAX_TOKENS_DENSE * activations)

    wide = [config for config in configs if tile(config) >= 16 * 32 * WARPS]
    return [config for config in wide if size(config) <= limit] or [min(wide, key=size)]


@triton.autotune(
    configs=[
        # With 32 rows of a map six stages spill registers on an A100 (fp32 residuals).
        triton.Config({"BLOCK_N": rows}, num_warps=WARPS, num_stages=stages)
        for rows, stages in ((16, 4), (16, 6), (32, 3), (32, 4))
    ],
    key=["hidden", "rank"],
    prune_configs_by={"early_config_prune": suitable},
    restore_value=["y", "edited"],
    cache_results=True,
)
@triton.jit(do_not_specialize=["num_tokens"])
def decode(
    # inputs; None where absent
    x,
    residual,
    down,
    up,
    down_scale,
    up_scale,
    bias,
    row_alpha,
    row_beta,
    row_map,
    weight,
    norm_bias,
    # outputs
    y,
    edited,
    # workspace
    z,
    mapped,
    counters,
    # sizes
    num_tokens,
    hidden,
    rank,
    num_maps,
    # strides, in elements
    x_stride,
    residual_stride,
    y_stride,
    edited_stride,
    bias_stride,
    # numbers of the call
    alpha,
    beta,
    eps,
    weight_offset,
    # constants: the tiles, how their products are formed, the norm
    TOKENS: tl.constexpr,
    SLOTS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OPERAND: tl.constexpr,
    PARTS: tl.constexpr,
    FACTOR_OPERAND: tl.constexpr,
    FACTOR_PARTS: tl.constexpr,
    CENTRE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    RESIDENT: tl.constexpr,
    PROGRAMMATIC: tl.constexpr,
):
    """One work item per program. z is fp32 ``[SPLITS, num_tokens, rank]``, mapped fp32 ``[num_tokens, hidden]``."""
    if PROGRAMMATIC:
        gdc_launch_dependents()
        gdc_wait()
    inputs = (x, residual, x_stride, residual_stride)
    item = tl.atomic_add(counters, 1, sem="relaxed", scope="gpu")
    tiles = tl.cdiv(num_tokens, TOKENS)
    down_items, up_items = SLOTS * SPLITS * tl.cdiv(rank, BLOCK_N), SLOTS * tl.cdiv(hidden, BLOCK_N)
    first_up = tiles * down_items
    first_row = first_up + tiles * up_items
    if down is not None:  # noqa: SIM102 - decided while compiling
        if item < first_up:
            tile, item_of_tile = item // down_items, item % down_items
            slot, piece = item_of_tile // (down_items // SLOTS), item_of_tile % (down_items // SLOTS)
            group = _rows_of_slot(row_map, tile, slot, num_maps, num_tokens, TOKENS)
            _down_item(
                inputs, down, z, group, piece, num_tokens, rank, hidden, SPLITS,
                TOKENS, BLOCK_N, BLOCK_K, OPERAND, PARTS
            )  # fmt: skip
            _arrive(_finished_down(counters, tile))
    if item >= first_up and item < first_row:
        tile, item_of_tile = (item - first_up) // up_items, (item - first_up) % up_items
        slot, block = item_of_tile // (up_items // SLOTS), item_of_tile % (up_items // SLOTS)
        group = _rows_of_slot(row_map, tile, slot, num_maps, num_tokens, TOKENS)
        if down is None:
            _dense_item(inputs, up, mapped, group, block, hidden, TOKENS, BLOCK_N, BLOCK_K, OPERAND, PARTS)
        else:
            _wait(_finished_down(counters, tile), down_items)
            _up_item(
                z, down_scale, up, mapped, group, block, num_tokens, rank, hidden, SPLITS,
                TOKENS, BLOCK_N, BLOCK_K, FACTOR_OPERAND, FACTOR_PARTS
            )  # fmt: skip
        _arrive(_finished_up(counters, tile))
    if item >= first_row:
        row = item - first_row
        _wait(_finished_up(counters, row // TOKENS), up_items)
        vectors, edit = (up_scale, bias, bias_stride), (row_alpha, row_beta, row_map, alpha, beta, num_maps)
        norm, outputs = (weight, norm_bias, eps, weight_offset), (y, edited, y_stride, edited_stride)
        finish_row(row, inputs, mapped, vectors, edit, norm, outputs, hidden, CENTRE, BLOCK_D, RESIDENT)
        tl.debug_barrier()
        if tl.atomic_add(counters + 1, 1, sem="acq_rel", scope="gpu") == num_tokens - 1:
            for counter in range(2 + 2 * tiles):
                tl.store(counters + counter, 0)
