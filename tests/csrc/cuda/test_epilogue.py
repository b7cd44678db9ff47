"""The launch after a GEMM: bias, strengths, residual, rounding and norm of rows whose M r is given."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cuda.decode_cases import BF16, FP16, FP32, both_equal
from cuda.launcher import launches, prepare, run_fibers, run_ptx
from op_cases import Case, make
from tolerances import assert_close

from incline_fast.maps import AffineMap

pytestmark = pytest.mark.gpu_emulated


def image_of(case: Case) -> torch.Tensor:
    """M r in fp32."""
    residual = case.options.get("residual")
    r = case.x.double() if residual is None else case.x.double() + residual.double()
    return (r @ case.map.as_dense()[0].double().T).float()


@pytest.mark.parametrize("norm", ["rms", "layer"])
@pytest.mark.parametrize(("dtype", "residual"), [(BF16, None), (FP16, FP32), (FP32, FP32), (BF16, BF16)])
@pytest.mark.parametrize("hidden", [1, 7, 16, 100, 1025])
def test_against_the_reference(hidden: int, dtype: torch.dtype, residual: torch.dtype | None, norm: str) -> None:
    """On fibers and as PTX, some rows without a map; in place as well."""
    options = {"row_map": torch.arange(5, dtype=torch.int32) % 3 - 1, "alpha": torch.linspace(-1, 1, 5)}
    case = make(norm, hidden, (5,), dtype=dtype, residual_dtype=residual, **options)
    case = case.but(row_map=options["row_map"].clamp(max=0))
    mapped = image_of(case)
    y, edited = run_fibers(prepare(case, mapped=mapped))
    assert_close(edited, case.expected()[1], hidden)
    assert_close(y, case.normed(edited), hidden)
    assert both_equal(run_fibers(prepare(case, mapped=mapped, in_place=True), seed=5, resident=2), (y, edited))
    assert both_equal(run_ptx(prepare(case, mapped=mapped), "sm_80"), (y, edited))


UNIFORM = pytest.mark.parametrize(("dtype", "residual"), [(BF16, None), (BF16, BF16), (FP16, None), (FP16, FP16)])


def kernel_of(case: Case, mapped: torch.Tensor) -> str:
    (launch,) = launches(prepare(case, mapped=mapped))
    return launch.kernel.decode()


@UNIFORM
@pytest.mark.parametrize("hidden", [64, 2112, 8192])
def test_rows_of_one_16_bit_type(hidden: int, dtype: torch.dtype, residual: torch.dtype | None) -> None:
    """Their kernel keeps r' in registers, and has the bits of the general one, which a product two bytes off leads to;
    with rows that no map edits, and one whose map is not there."""
    row_map = torch.tensor([0, -1, 0, 7], dtype=torch.int32)
    options = {"alpha": torch.linspace(-1, 1, 4), "beta": 0.5, "weight_offset": 1.0, "bias": hidden != 64}
    case = make("layer" if hidden == 2112 else "rms", hidden, (4,), dtype=dtype, residual_dtype=residual, **options)
    product = image_of(case).to(dtype)
    case = case.but(row_map=row_map)
    shifted = torch.empty(4 * hidden + 1, dtype=dtype)[1:].view(4, hidden).copy_(product)
    assert "uniform" in kernel_of(case, product)
    assert "uniform" not in kernel_of(case, shifted)
    y, edited = run_fibers(prepare(case, mapped=product))
    found = run_fibers(prepare(case, mapped=shifted))
    assert all(torch.equal(a[:3], b[:3]) for a, b in zip(found, (y, edited), strict=True))
    assert y[3].isnan().all()
    known = case.but(row_map=row_map.clamp(max=0))
    y, edited = run_fibers(prepare(known, mapped=product, in_place=True), seed=3)
    assert_close(edited, known.expected()[1], hidden)
    assert_close(y, known.normed(edited), hidden)
    assert both_equal(run_ptx(prepare(known, mapped=product), "sm_80"), (y, edited))


def test_other_rows_take_the_general_kernel() -> None:
    for case in (make("rms", 8256, (1,), dtype=BF16), make("rms", 96, (1,), dtype=BF16), make("rms", 128, (1,))):
        assert "uniform" not in kernel_of(case, image_of(case).to(case.x.dtype))


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_rows_without_a_map_have_the_bits_of_the_decode_kernels(norm: str) -> None:
    """Both take the statistics by the same tree of sums."""
    case = make(norm, 777, (3,), dtype=BF16, row_map=torch.full((3,), -1, dtype=torch.int32))
    decoded = run_fibers(prepare(case))
    assert both_equal(run_fibers(prepare(case, mapped=torch.zeros(3, 777))), decoded)


def test_the_map_is_not_read() -> None:
    case = make("rms", 64, (2,), dtype=BF16)
    mapped = image_of(case)
    expected = run_fibers(prepare(case, mapped=mapped))
    case = replace(case, map=AffineMap.dense(torch.full((64, 64), torch.nan, dtype=BF16)))
    assert both_equal(run_fibers(prepare(case, mapped=mapped)), expected)


def test_no_data_race() -> None:
    case = make("layer", 300, (3,), dtype=BF16, residual_dtype=FP32)
    uniform = make("layer", 320, (3,), dtype=BF16)
    for each, product in ((case, image_of(case)), (uniform, image_of(uniform).to(BF16))):
        for seed in (1, 2):
            run_fibers(prepare(each, mapped=product, sanitizer="races"), seed=seed, sanitizer="races")
