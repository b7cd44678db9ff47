"""Single PTX instructions against numpy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from ptx_cases import evaluate, one

from emulator.ptx import PTXError
from emulator.ptx.scalars import fused_multiply_add, round_to_bf16

pytestmark = pytest.mark.gpu_emulated
RNG = np.random.default_rng(0)
WORDS = RNG.integers(0, 2**32, (3, 64), dtype=np.uint32)
INTS = WORDS.view(np.int32)
SPECIAL = [0.0, -0.0, 1.0, -1.5, 0.5, 2.5, -2.5, 1e-40, 3e38, -3e38, np.inf, -np.inf, np.nan, 300.7, -129.2, 127.5]
FLOATS = np.array(SPECIAL * 4, np.float32)
OTHERS = RNG.standard_normal(64).astype(np.float32)


def bfloat(values: np.ndarray) -> np.ndarray:
    """bf16 bits by torch."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.s32 %o0, %i0, %i1;", lambda a, b, c: a + b),
        ("sub.u32 %o0, %i0, %i1;", lambda a, b, c: a - b),
        ("mul.lo.s32 %o0, %i0, %i1;", lambda a, b, c: a * b),
        ("mul.hi.u32 %o0, %i0, %i1;", lambda a, b, c: (a.astype(np.uint64) * b >> np.uint64(32)).astype(np.uint32)),
        ("mad.lo.s32 %o0, %i0, %i1, %i2;", lambda a, b, c: a * b + c),
        ("min.s32 %o0, %i0, %i1;", lambda a, b, c: np.minimum(a.view(np.int32), b.view(np.int32)).view(np.uint32)),
        ("max.u32 %o0, %i0, %i1;", lambda a, b, c: np.maximum(a, b)),
        ("and.b32 %o0, %i0, %i1;", lambda a, b, c: a & b),
        ("not.b32 %o0, %i0;", lambda a, b, c: ~a),
        ("lop3.b32 %o0, %i0, %i1, %i2, 0xE8;", lambda a, b, c: (a & b) | (a & c) | (b & c)),
        ("lop3.b32 %o0, %i0, %i1, %i2, 0x96;", lambda a, b, c: a ^ b ^ c),
        ("shl.b32 %o0, %i0, 40;", lambda a, b, c: np.zeros_like(a)),
        ("shr.s32 %o0, %i0, 40;", lambda a, b, c: (a.view(np.int32) >> 31).view(np.uint32)),
        ("shf.l.wrap.b32 %o0, %i0, %i1, 9;", lambda a, b, c: b << np.uint32(9) | a >> np.uint32(23)),
        ("shf.r.clamp.b32 %o0, %i0, %i1, 40;", lambda a, b, c: b),
        ("prmt.b32 %o0, %i0, %i1, 0x5410;", lambda a, b, c: (a & np.uint32(0xFFFF)) | b << np.uint32(16)),
        ("prmt.b32 %o0, %i0, %i1, 0x0123;", lambda a, b, c: a.byteswap()),
        ("prmt.b32 %o0, %i0, %i1, 0x8888;", lambda a, b, c: np.where(a >> 7 & 1, 0xFFFFFFFF, 0).astype(np.uint32)),
        ("bfe.u32 %o0, %i0, 5, 7;", lambda a, b, c: a >> np.uint32(5) & np.uint32(127)),
        ("bfe.s32 %o0, %i0, 28, 8;", lambda a, b, c: (a.view(np.int32) >> 28).view(np.uint32)),
        ("bfi.b32 %o0, %i0, %i1, 8, 9;",
         lambda a, b, c: b & np.uint32(0xFFFE00FF) | (a & np.uint32(511)) << np.uint32(8)),
        ("popc.b32 %o0, %i0;", lambda a, b, c: np.bitwise_count(a)),
        ("clz.b32 %o0, 0x1000;", lambda a, b, c: np.full_like(a, 19)),
        ("bfind.u32 %o0, 0x1000;", lambda a, b, c: np.full_like(a, 12)),
        ("bfind.shiftamt.u32 %o0, 0x1000;", lambda a, b, c: np.full_like(a, 19)),
        ("brev.b32 %o0, 0x3;", lambda a, b, c: np.full_like(a, 0xC0000000)),
        ("setp.lt.s32 p1, %i0, %i1; selp.b32 %o0, 7, 9, p1;",
         lambda a, b, c: np.where(a.view(np.int32) < b.view(np.int32), 7, 9)),
        ("setp.hi.and.u32 p1|p2, %i0, %i1, 1; selp.b32 %o0, 7, 9, p2;", lambda a, b, c: np.where(a > b, 9, 7)),
    ],
)  # fmt: skip
def test_integers(body: str, expected) -> None:
    a, b, c = WORDS
    with np.errstate(over="ignore"):
        assert np.array_equal(one(body, [a, b, c], np.uint32), np.asarray(expected(a, b, c)))


def test_division_truncates_as_c_does() -> None:
    a = np.array([7, -7, 7, -7, -8, 8], np.int32)
    b = np.array([2, 2, -2, -2, 2, -8], np.int32)
    quotient, remainder = evaluate("div.s32 %o0, %i0, %i1; rem.s32 %o1, %i0, %i1;", [a, b], [np.int32, np.int32])
    assert quotient.tolist() == [3, -3, -3, 3, -4, -1]
    assert remainder.tolist() == [1, -1, 1, -1, 0, 0]


def test_wide_products_and_sign() -> None:
    product = one("mul.wide.s32 %o0, %i0, %i1;", [INTS[0], INTS[1]], np.int64)
    assert np.array_equal(product, INTS[0].astype(np.int64) * INTS[1])
    narrow = np.arange(-3, 3, dtype=np.int8)
    body = ".reg .b32 %w; cvt.s32.s8 %w, %i0; mov.b32 %o0, %w;"
    assert one(body, [narrow], np.int32).tolist() == narrow.tolist()


@pytest.mark.parametrize(("kinds", "signs"), [("s32.s32", (1, 1)), ("u32.s32", (0, 1)), ("u32.u32", (0, 0))])
def test_dp4a(kinds: str, signs: tuple[int, int]) -> None:
    a, b = (
        word.view(np.int8 if sign else np.uint8).reshape(-1, 4) for word, sign in zip(WORDS[:2], signs, strict=True)
    )
    expected = (a.astype(np.int64) * b).sum(1) + INTS[2]
    assert np.array_equal(one(f"dp4a.{kinds} %o0, %i0, %i1, %i2;", list(WORDS), np.int32), expected.astype(np.int32))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div.rn"])
def test_float_arithmetic_is_ieee(name: str) -> None:
    numpy_name = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div.rn": np.divide}[name]
    with np.errstate(all="ignore"):
        expected = numpy_name(FLOATS, OTHERS)
    np.testing.assert_array_equal(one(f"{name}.f32 %o0, %i0, %i1;", [FLOATS, OTHERS], np.float32), expected)


def test_fused_multiply_add_rounds_once() -> None:
    a, b = (RNG.standard_normal(2000).astype(np.float32) for _ in range(2))
    # Sums that nearly cancel, and ties of the second rounding that only the last bit of the product decides.
    c = np.where(np.arange(2000) % 2, -(a * b), RNG.standard_normal(2000).astype(np.float32) * np.float32(1e-3))
    a[:4], b[:4], c[:4] = 1 + 2.0**-12, 1 + 2.0**-12, [2.0**-60, -(2.0**-60), 0, 2.0**-24]
    exact = [Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)) for x, y, z in zip(a, b, c, strict=True)]
    result = fused_multiply_add(a, b, c)
    for got, value in zip(result, exact, strict=True):
        error = abs(Fraction(float(got)) - value)
        for direction in (np.inf, -np.inf):
            neighbour = np.nextafter(got, np.float32(direction))
            assert error <= abs(Fraction(float(neighbour)) - value)


def test_min_and_max_skip_nan_unless_told() -> None:
    nan = np.full(4, np.nan, np.float32)
    one_and_two = np.array([1, 2, 1, 2], np.float32)
    assert one("min.f32 %o0, %i0, %i1;", [nan, one_and_two], np.float32).tolist() == one_and_two.tolist()
    assert np.isnan(one("max.NaN.f32 %o0, %i0, %i1;", [nan, one_and_two], np.float32)).all()


@pytest.mark.parametrize("comparison", ["eq", "ne", "lt", "ge", "equ", "neu", "ltu", "geu", "num", "nan"])
def test_comparisons_with_nan(comparison: str) -> None:
    a, b = np.array([1, 2, np.nan, 1], np.float32), np.array([1, 1, 1, np.nan], np.float32)
    unordered = np.isnan(a) | np.isnan(b)
    plain = {"eq": a == b, "ne": (a != b) & ~unordered, "lt": a < b, "ge": a >= b}
    expected = {"num": ~unordered, "nan": unordered}.get(comparison)
    if expected is None:
        expected = plain[comparison[:2]] | (unordered if len(comparison) == 3 else False)
    body = f"setp.{comparison}.f32 p1, %i0, %i1; selp.b32 %o0, 1, 0, p1;"
    assert one(body, [a, b], np.uint32).astype(bool).tolist() == expected.tolist()


def test_float_to_integer() -> None:
    whole = np.where(np.isnan(FLOATS), 0, np.clip(np.rint(FLOATS.astype(np.float64)), -(2**31), 2**31 - 1))
    assert np.array_equal(one("cvt.rni.s32.f32 %o0, %i0;", [FLOATS], np.int32), whole.astype(np.int32))
    byte = np.where(np.isnan(FLOATS), 0, np.clip(np.rint(FLOATS.astype(np.float64)), -128, 127)).astype(np.int32)
    assert np.array_equal(one("cvt.rni.sat.s8.f32 %o0, %i0;", [FLOATS], np.int32), byte)
    assert one("cvt.rzi.u32.f32 %o0, %i0;", [FLOATS], np.uint32)[:4].tolist() == [0, 0, 1, 0]


def test_integer_to_float() -> None:
    assert np.array_equal(one("cvt.rn.f32.s32 %o0, %i0;", [INTS[0]], np.float32), INTS[0].astype(np.float32))
    assert np.array_equal(one("cvt.rn.f32.u32 %o0, %i0;", [WORDS[0]], np.float32), WORDS[0].astype(np.float32))


def test_conversions_to_sixteen_bits() -> None:
    many = np.concatenate([FLOATS, OTHERS, WORDS[0].view(np.float32)])
    with np.errstate(all="ignore"):
        half = many.astype(np.float16)
    np.testing.assert_array_equal(one("cvt.rn.f16.f32 %o0, %i0;", [many], np.float16), half)
    back = one("cvt.f32.f16 %o0, %i0;", [half], np.float32)
    np.testing.assert_array_equal(back, half.astype(np.float32))
    ordinary = many[~np.isnan(many)]
    assert np.array_equal(one("cvt.rn.bf16.f32 %o0, %i0;", [ordinary], np.uint16), bfloat(ordinary))
    word = one("cvt.rn.bf16x2.f32 %o0, %i0, %i1;", [ordinary, ordinary[::-1]], np.uint32)
    assert np.array_equal(word >> 16, bfloat(ordinary))
    assert np.array_equal(word & 0xFFFF, bfloat(ordinary[::-1]))


def test_bf16_from_fp64_rounds_once() -> None:
    tie = 1 + 2.0**-8
    values = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40])
    assert round_to_bf16(values).tolist() == [0x3F80, 0x3F81, 0x3F80, 0xBF81]


@pytest.mark.parametrize("kind", ["f16x2", "bf16x2"])
def test_packed_arithmetic(kind: str) -> None:
    values = [RNG.standard_normal((64, 2)).astype(np.float32) for _ in range(3)]
    if kind == "f16x2":
        words = [value.astype(np.float16).view(np.uint32)[:, 0] for value in values]
        a, b, c = (word.view(np.float16).astype(np.float64) for word in words)
        expected = (a * b + c).astype(np.float16).view(np.uint32)
    else:
        words = [bfloat(value).view(np.uint32)[:, 0] for value in values]
        a, b, c = ((word.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64) for word in words)
        expected = round_to_bf16(a * b + c).view(np.uint32)
    assert np.array_equal(one(f"fma.rn.{kind} %o0, %i0, %i1, %i2;", words, np.uint32), expected)


def test_approximate_functions() -> None:
    positive = np.abs(OTHERS) + np.float32(0.1)
    for name, function in {
        "rsqrt": lambda x: 1 / np.sqrt(x),
        "ex2": np.exp2,
        "rcp": lambda x: 1 / x,
        "lg2": np.log2,
    }.items():
        expected = function(positive.astype(np.float64)).astype(np.float32)
        assert np.array_equal(one(f"{name}.approx.f32 %o0, %i0;", [positive], np.float32), expected)


def test_flush_to_zero() -> None:
    tiny = np.array([1e-40, -1e-40, 1.0], np.float32)
    assert one("mul.ftz.f32 %o0, %i0, 0f3F800000;", [tiny], np.float32).tolist() == [0, 0, 1]
    assert np.array_equal(one("mul.f32 %o0, %i0, 0f3F800000;", [tiny], np.float32), tiny)


# ---- warps -----------------------------------------------------------------------------------------------------------

LANES = np.arange(64, dtype=np.uint32)


@pytest.mark.parametrize(
    ("mode", "by", "control", "source"),
    [
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("down", 3, 31, lambda lane: lane + 3 if lane < 29 else lane),
        ("up", 3, 0, lambda lane: lane - 3 if lane >= 3 else lane),
        ("idx", 7, 31, lambda lane: 7),
        ("down", 2, 0x181F, lambda lane: lane + 2 if lane % 8 < 6 else lane),
    ],
)
def test_shuffles(mode: str, by: int, control: int, source) -> None:
    body = f"shfl.sync.{mode}.b32 %o0|p1, %i0, {by}, {control}, -1; selp.b32 %o1, 1, 0, p1;"
    result, valid = evaluate(body, [WORDS[0]], [np.uint32, np.uint32])
    expected = [32 * (i // 32) + source(i % 32) for i in range(64)]
    assert np.array_equal(result, WORDS[0][expected])
    if mode != "idx":
        assert np.array_equal(valid == 1, np.array(expected) != np.arange(64))


def test_votes_and_reductions() -> None:
    body = "setp.lt.u32 p1, %i0, %i1; vote.sync.ballot.b32 %o0, p1, -1; redux.sync.add.u32 %o1, %i0, -1;"
    ballot, total = evaluate(body, [WORDS[0], WORDS[1]], [np.uint32, np.uint32])
    for warp in range(2):
        part = slice(32 * warp, 32 * warp + 32)
        bits = sum(int(less) << lane for lane, less in enumerate(WORDS[0][part] < WORDS[1][part]))
        assert set(ballot[part].tolist()) == {bits}
        assert set(total[part].tolist()) == {int(WORDS[0][part].sum(dtype=np.uint32))}


def test_divergent_lanes_meet_at_a_shuffle() -> None:
    """Both sides of a branch come to the same shuffle; it waits for all the lanes that its mask names."""
    body = """
      mov.b32 %o0, 5;
      setp.lt.u32 p1, %lane, 10;
      @p1 bra $EARLY;
      add.u32 %o0, %i0, 1;
      $EARLY:
      shfl.sync.idx.b32 %o0, %o0, 20, 31, -1;"""
    assert set(one(body, [LANES[:32]], np.uint32).tolist()) == {21}


def test_atomics() -> None:
    old, new = evaluate(
        "mov.u32 %o1, scratch; st.shared.b32 [%o1], 0; bar.sync 0; atom.shared.add.u32 %o0, [%o1], %i0; bar.sync 0;"
        "ld.shared.u32 %o1, [%o1];",
        [LANES],
        [np.uint32, np.uint32],
    )
    assert set(new.tolist()) == {LANES.sum()}
    assert np.array_equal(np.sort(old), np.cumsum(LANES) - LANES)


@pytest.mark.parametrize(
    ("update", "expected"),
    [("min.s32", INTS[0].min()), ("max.s32", INTS[0].max()), ("and.b32", np.bitwise_and.reduce(INTS[0])),
     ("xor.b32", np.bitwise_xor.reduce(INTS[0])), ("inc.u32", 64)],
)  # fmt: skip
def test_atomic_updates(update: str, expected: int) -> None:
    start = {"and.b32": -1, "min.s32": 2**31 - 1, "max.s32": -(2**31)}.get(update, 0)
    operand = "0xFFFFFFFF" if update == "inc.u32" else "%i0"
    body = f"""mov.u32 %o0, scratch; st.shared.b32 [%o0], {start}; bar.sync 0;
      red.shared.{update} [%o0], {operand}; bar.sync 0; ld.shared.b32 %o0, [%o0];"""
    assert set(one(body, [INTS[0]], np.int32).tolist()) == {int(expected)}


# ---- matrices --------------------------------------------------------------------------------------------------------


def fragment_order(rows: int, columns: int, per: int, by_column: bool) -> list[list[tuple[int, int]]]:
    """For each register and lane, the first (row, k) that it holds, from the tables of the PTX manual."""
    parts = []
    for register in range(rows // 8 * columns // (4 * per)):
        row = [lane // 4 + 8 * (register % 2 if rows == 16 else 0) for lane in range(32)]
        block = register // 2 if rows == 16 else register
        k = [lane % 4 * per + 4 * per * block for lane in range(32)]
        parts.append(list(zip(k, row, strict=True) if by_column else zip(row, k, strict=True)))
    return parts


def pack(matrix: np.ndarray, order: list[tuple[int, int]], per: int, by_column: bool) -> np.ndarray:
    """One register of every lane."""
    step = (1, 0) if by_column else (0, 1)
    lanes = [[matrix[r + i * step[0], c + i * step[1]] for i in range(per)] for r, c in order]
    return np.array(lanes).view(np.uint32).reshape(32)


CASES = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": (16, 2, np.uint16),
    "m16n8k16.row.col.f32.f16.f16.f32": (16, 2, np.float16),
    "m16n8k8.row.col.f32.f16.f16.f32": (8, 2, np.float16),
    "m16n8k8.row.col.f32.tf32.tf32.f32": (8, 1, np.float32),
    "m16n8k32.row.col.s32.s8.s8.s32": (32, 4, np.int8),
}


@pytest.mark.parametrize("shape", CASES)
def test_mma(shape: str) -> None:
    depth, per, dtype = CASES[shape]
    if dtype == np.int8:
        a, b = (RNG.integers(-128, 128, size, dtype=np.int8) for size in ((16, depth), (depth, 8)))
        exact = [matrix.astype(np.int64) for matrix in (a, b)]
        c = RNG.integers(-1000, 1000, (16, 8), dtype=np.int32)
    else:
        a, b = (RNG.standard_normal(size).astype(np.float32) for size in ((16, depth), (depth, 8)))
        c = RNG.standard_normal((16, 8)).astype(np.float32)
        if dtype == np.uint16:
            a, b = bfloat(a).reshape(a.shape), bfloat(b).reshape(b.shape)
            exact = [(m.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for m in (a, b)]
        elif dtype == np.float32:
            a, b = ((m.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) for m in (a, b))
            exact = [m.astype(np.float64) for m in (a, b)]
        else:
            a, b = a.astype(np.float16), b.astype(np.float16)
            exact = [m.astype(np.float64) for m in (a, b)]
    a_words = [pack(a, order, per, False) for order in fragment_order(16, depth, per, False)]
    b_words = [pack(b, order, per, True) for order in fragment_order(8, depth, per, True)]
    places = [(GROUPS + 8 * (i // 2), MEMBERS * 2 + i % 2) for i in range(4)]
    inputs = [*a_words, *b_words, *(c[place] for place in places)]
    names = [f"%i{k}" for k in range(len(inputs))]
    split = len(a_words), len(a_words) + len(b_words)
    operands = [names[: split[0]], names[split[0] : split[1]], names[split[1] :]]
    text = ", ".join("{" + ", ".join(part) + "}" for part in operands)
    results = evaluate(f"mma.sync.aligned.{shape} {{%o0, %o1, %o2, %o3}}, {text};", inputs, [c.dtype] * 4)
    expected = (exact[0] @ exact[1] + c).astype(c.dtype)
    for place, result in zip(places, results, strict=True):
        if dtype == np.int8:
            assert np.array_equal(result, expected[place])
        else:
            np.testing.assert_allclose(result, expected[place], rtol=2e-7, atol=1e-12)


GROUPS, MEMBERS = np.arange(32) // 4, np.arange(32) % 4


@pytest.mark.parametrize("transposed", [False, True])
def test_matrix_loads_and_stores(transposed: bool) -> None:
    """ldmatrix of four 8 x 8 matrices, and stmatrix as its reverse."""
    mode = ".trans" if transposed else ""
    matrices = RNG.integers(0, 2**16, (4, 8, 8), dtype=np.uint16)
    rows = matrices.reshape(32, 8).view(np.uint32)  # lane l holds row l
    body = f"""
      .reg .b32 %row, %r<4>;
      mad.lo.u32 %row, %lane, 16, scratch;
      st.shared.v4.b32 [%row], {{%i0, %i1, %i2, %i3}};
      bar.sync 0;
      ldmatrix.sync.aligned.m8n8.x4{mode}.shared.b16 {{%o0, %o1, %o2, %o3}}, [%row];
      add.u32 %row, %row, 1024;
      stmatrix.sync.aligned.m8n8.x4{mode}.shared.b16 [%row], {{%o0, %o1, %o2, %o3}};
      bar.sync 0;
      ld.shared.v4.b32 {{%o4, %o5, %o6, %o7}}, [%row];"""
    results = evaluate(body, list(rows.T), [np.uint32] * 8)
    for matrix, word in zip(matrices, results[:4], strict=True):
        source = matrix.T if transposed else matrix
        assert np.array_equal(word & 0xFFFF, source[GROUPS, MEMBERS * 2])
        assert np.array_equal(word >> 16, source[GROUPS, MEMBERS * 2 + 1])
    assert np.array_equal(np.stack(results[4:]), rows.T)


def test_unknown_instruction_is_an_error_with_its_line() -> None:
    with pytest.raises(
        PTXError, match=r"does not know this instruction: 'wgmma\.fence\.sync\.aligned' at PTX line \d+"
    ):
        one("wgmma.fence.sync.aligned; mov.b32 %o0, 0;", [LANES], np.uint32)
