"""Every backend against the fp64 definition: sizes, dtypes, strengths, stacks of maps, both norms, both forms."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from op_cases import BACKENDS, Case, make
from tolerances import assert_close, assert_not_worse

from incline_fast.maps import AffineMap

HIDDEN = [1, 7, 8, 15, 16, 17, 111, 768, 769, 2048]
ROWS = [0, 1, 2, 3, 7, 33]
LOW = [torch.float32, torch.bfloat16, torch.float16]
MAPS = [*LOW, torch.int8]
ALPHAS = [0.0, 1.0, -0.5]


def check(case: Case, backend: str) -> None:
    """Both forms agree with fp64 and, bit for bit, with each other.

    y is judged from the r' that was returned: that is what the norm has to read, and a row whose r' nearly cancels
    would otherwise be judged by the cancellation.
    """
    length = case.x.shape[-1]
    y, edited = case(backend)
    residual = case.options.get("residual")
    assert y.dtype == case.x.dtype
    assert edited.dtype == (case.x if residual is None else residual).dtype
    assert_close(edited, case.expected()[1], length)
    assert_close(y, case.normed(edited), length)
    again = case.in_place(backend)
    assert torch.equal(again[0], y)
    assert torch.equal(again[1], edited)


def spread_options(index: int, rows: int) -> dict:
    """Walk through the combinations of the remaining options with the case's number, so that all of them meet."""
    strength = index % 4
    options: dict = {"alpha": ALPHAS[strength]} if strength < 3 else {"alpha": torch.linspace(-1, 1, rows)}
    if index % 3 == 1:
        options["beta"] = 0.25
    if index % 3 == 2:
        options["beta"] = torch.linspace(0.5, 1, rows)
    if index % 5 < 2:
        options["num_maps"] = 3
        options["row_map"] = torch.arange(rows, dtype=torch.int32) % 4 - 1
    options["bias"] = index % 7 < 5
    options["residual_dtype"] = torch.float32 if index % 2 else None
    options["weight_offset"] = float(index % 11 == 0)
    return options


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("hidden", "rank"), [(d, r) for d in HIDDEN for r in (None, 1, 7, 64) if r is None or r <= d])
def test_sizes(hidden: int, rank: int | None, backend: str) -> None:
    for number, (rows, norm) in enumerate(itertools.product(ROWS, ("rms", "layer"))):
        index = HIDDEN.index(hidden) * 7 + (rank or 0) + number
        check(make(norm, hidden, (rows,), rank=rank, seed=index, **spread_options(index, rows)), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rank", [None, 1, 7])
def test_int8_maps_of_odd_sizes(rank: int | None, backend: str) -> None:
    """Whole and partial panels; the scales of stacked maps do not mix."""
    sizes = [hidden for hidden in HIDDEN if hidden >= (rank or 1) and hidden < 1000]
    for number, (hidden, rows) in enumerate(itertools.product(sizes, (1, 5, 33))):
        options = spread_options(number, rows)
        check(make("rms", hidden, (rows,), rank=rank, map_dtype=torch.int8, seed=number, **options), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("map_dtype", MAPS)
@pytest.mark.parametrize("dtype", LOW)
def test_dtypes(dtype: torch.dtype, map_dtype: torch.dtype, backend: str) -> None:
    for number, (rank, wide, vectors, norm) in enumerate(
        itertools.product((None, 5), (None, dtype, torch.float32), LOW, ("rms", "layer"))
    ):
        kinds = {"dtype": dtype, "map_dtype": map_dtype, "residual_dtype": wide, "vector_dtype": vectors}
        check(make(norm, 111, (3,), rank=rank, seed=number, alpha=0.75, **kinds), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("rank", [None, 7])
def test_double_sums_wherever_x_or_the_residual_is_double(rank: int | None, norm: str, backend: str) -> None:
    for dtype, residual in [(torch.float64, None), (torch.float64, torch.float64), (torch.float64, torch.float32)] + [
        (low, torch.float64) for low in LOW
    ]:
        kinds = {"dtype": dtype, "residual_dtype": residual, "map_dtype": torch.float64, "vector_dtype": torch.float64}
        check(make(norm, 111, (7,), rank=rank, alpha=-0.5, **kinds), backend)


def unfused(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """The same computation as separate torch calls, everything in x's dtype."""
    x, map, options = case.x, case.map, case.options
    r = x if options.get("residual") is None else x + options["residual"]
    z = F.linear(r if map.down is None else F.linear(r, map.down[0]), map.up[0]) + options["bias"][0]
    edited = r + options["alpha"] * z
    if case.norm == "rms":
        return F.rms_norm(edited, (x.shape[-1],), case.weight, 1e-6), edited
    return F.layer_norm(edited, (x.shape[-1],), case.weight, case.norm_bias, 1e-5), edited


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("rank", [None, 64])
@pytest.mark.parametrize("hidden", [111, 2048])
@pytest.mark.parametrize("dtype", LOW)
def test_no_more_than_twice_the_error_of_unfused_torch(
    dtype: torch.dtype, hidden: int, rank: int | None, norm: str
) -> None:
    for residual in (None, dtype):
        case = make(norm, hidden, (33,), rank=rank, dtype=dtype, residual_dtype=residual, alpha=0.5)
        for actual, plain, wanted in zip(case(BACKENDS[-1]), unfused(case), case.expected(), strict=True):
            assert_not_worse(actual, plain, wanted)


@pytest.mark.parametrize("tokens", [1, 33])
@pytest.mark.parametrize("map_dtype", [torch.bfloat16, torch.int8])
def test_no_more_than_twice_the_error_with_rounded_maps(map_dtype: torch.dtype, tokens: int) -> None:
    """fp32 states, which a matrix unit takes in pieces; torch multiplies by the same weights in fp32."""
    cases = [make("rms", 2048, (tokens,), map_dtype=map_dtype, seed=seed, alpha=0.5) for seed in range(3)]
    plains = [unfused(case.but(map=case.map.to(torch.float32)))[1] for case in cases]
    edited = [(case(BACKENDS[-1])[1], plain, case.expected()[1]) for case, plain in zip(cases, plains, strict=True)]
    actual, plain, wanted = (torch.cat(rows) for rows in zip(*edited, strict=True))
    assert_not_worse(actual, plain, wanted)


@pytest.mark.parametrize("tokens", [1, 2, 4])
@pytest.mark.parametrize("hidden", [96, 111, 128, 512])
def test_no_more_than_twice_the_error_with_few_short_rows(hidden: int, tokens: int) -> None:
    """torch multiplies so few rows in shorter chains of additions than more; r' over 20 batches."""
    cases = [make("rms", hidden, (tokens,), seed=seed, alpha=0.5) for seed in range(20)]
    edited = [(case(BACKENDS[-1])[1], unfused(case)[1], case.expected()[1]) for case in cases]
    actual, plain, wanted = (torch.cat(rows) for rows in zip(*edited, strict=True))
    assert_not_worse(actual, plain, wanted)


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize("hidden", [111, 127, 1087])
def test_norm_alone_is_no_less_accurate_than_torchs(hidden: int, norm: str) -> None:
    """Rows whose size is no whole number of vectors: an error of their sum scales all of y."""
    for seed in range(5):
        case = make(norm, hidden, (33,), seed=seed, alpha=0.5)
        y, edited = case(BACKENDS[-1])
        if norm == "rms":
            plain = F.rms_norm(edited, (hidden,), case.weight, 1e-6)
        else:
            plain = F.layer_norm(edited, (hidden,), case.weight, case.norm_bias, 1e-5)
        assert_not_worse(y, plain, case.normed(edited))


@pytest.mark.parametrize("rank", [None, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_bf16_maps_do_not_round_wider_activations(dtype: torch.dtype, rank: int | None) -> None:
    """As close to fp64 as separate torch calls in x's dtype on the same numbers, though a matrix unit takes bf16."""
    case = make("rms", 2048, (33,), rank=rank, dtype=dtype, map_dtype=torch.bfloat16, alpha=0.5)
    plain = case.but(map=case.map.to(dtype))
    for actual, wide, wanted in zip(case(BACKENDS[-1]), unfused(plain), case.expected(), strict=True):
        assert_not_worse(actual, wide, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", LOW)
def test_infinity_in_a_row_stays_infinite(dtype: torch.dtype, backend: str) -> None:
    case = make("rms", 64, (3,), dtype=dtype, map_dtype=torch.bfloat16, residual_dtype=torch.float32)
    residual = case.options["residual"].clone()
    residual[1, 5] = float("inf")
    edited = case.but(residual=residual)(backend)[1]
    others = torch.arange(64) != 5  # where infinity meets its own image, of either sign
    assert edited[1, others].isinf().all()
    assert edited[::2].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", LOW)
def test_norm_reads_the_rounded_residual(dtype: torch.dtype, backend: str) -> None:
    """y computed from the returned r' is y: the fused form sees what an unfused norm would see."""
    case = make("rms", 111, (3,), dtype=dtype, residual_dtype=dtype, vector_dtype=torch.float32)
    y, edited = case(backend)
    plain = AffineMap.dense(torch.zeros(111, 111, dtype=dtype))
    again = case.but(x=edited, map=plain, residual=None, bias=None)(backend)
    assert torch.equal(again[1], edited)
    assert torch.equal(again[0], y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_number_is_rounded_as_torch_rounds(dtype: torch.dtype, backend: str) -> None:
    """Each of the 65536 bit patterns plus a neighbour of it: subnormals, ties, overflow, signed zeros, inf and nan."""
    g = torch.Generator().manual_seed(0)
    bits = torch.arange(-(2**15), 2**15).reshape(64, 1024)
    neighbours = (bits + torch.randint(-3000, 3000, bits.shape, generator=g)).clamp(-(2**15), 2**15 - 1)
    a, b = bits.to(torch.int16).view(dtype), neighbours.to(torch.int16).view(dtype)
    no_map = torch.full((64,), -1, dtype=torch.int32)
    rounded = make("rms", 1024, (64,), dtype=dtype, row_map=no_map).but(x=a, residual=b)(backend)[1]
    expected = (a.float() + b.float()).to(dtype)
    finite = ~expected.isnan()
    assert torch.equal(rounded.isnan(), expected.isnan())
    assert torch.equal(rounded.view(torch.int16)[finite], expected.view(torch.int16)[finite])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", LOW)
def test_nan_stays_nan(dtype: torch.dtype, backend: str) -> None:
    """Also one whose payload would carry into the sign when it is rounded like a number; other rows are untouched."""
    case = make("rms", 33, (3,), dtype=dtype, residual_dtype=torch.float32)
    clean = case(backend)
    residual = case.options["residual"].clone()
    residual[1] = torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32)
    for actual, wanted in zip(case.but(residual=residual)(backend), clean, strict=True):
        assert actual[1].isnan().all()
        assert torch.equal(actual[::2], wanted[::2])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_rows_without_a_map_keep_their_bits(norm: str, backend: str) -> None:
    row_map = torch.tensor([-1, 0, -1, 2, -7], dtype=torch.int32)
    case = make(norm, 111, (5,), num_maps=3, dtype=torch.bfloat16, row_map=row_map, alpha=2.0, beta=0.5)
    edited = case(backend)[1]
    kept = row_map < 0
    assert torch.equal(edited[kept], case.x[kept])
    assert not torch.isclose(edited[~kept], case.x[~kept]).all(-1).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_large_mean_does_not_cancel(backend: str) -> None:
    """With mean 1e4 and deviation 1, E[x^2] - mean^2 in fp32 has no correct digit; two passes lose one last bit."""
    case = make("layer", 768, (3,), alpha=0.0)
    case = case.but(x=case.x + 1e4)
    y, expected = case(backend)[0], case.expected()[0]
    last_bit = 2.0**-10
    assert (y - expected).abs().max() < last_bit * case.weight.abs().max()
