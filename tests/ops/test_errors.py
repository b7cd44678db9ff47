"""What the ops do not define is refused by every backend, naming the argument, its value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_cases import BACKENDS, Case, make

from incline_fast import ops
from incline_fast.maps import AffineMap
from incline_fast.ops._extension import EXTENSION

D, ROWS = 6, 4


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def dense(d: int, dtype: torch.dtype = torch.float32) -> AffineMap:
    return AffineMap.dense(torch.zeros(d, d, dtype=dtype))


FLOATS = r"allowed: float32, bfloat16, float16, float64"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "x integer": ({"x": tensor(ROWS, D, dtype=torch.int32)}, rf"x has dtype int32; {FLOATS}"),
    "x scalar": ({"x": torch.tensor(1.0)}, r"x has shape \(\); expected \[..., d\] with d >= 1"),
    "x empty rows": ({"x": tensor(ROWS, 0)}, r"x has shape \(4, 0\); expected \[..., d\] with d >= 1"),
    "weight size": ({"weight": tensor(D + 1)}, r"weight has shape \(7,\); expected \(6,\), the hidden size"),
    "weight integer": ({"weight": tensor(D, dtype=torch.int64)}, rf"weight has dtype int64; {FLOATS}"),
    "norm_bias size": ({"norm_bias": tensor(1, D)}, r"norm_bias has shape \(1, 6\); expected \(6,\), the hidden size"),
    "residual shape": ({"residual": tensor(D)}, r"residual has shape \(6,\); expected \(4, 6\), the shape of x"),
    "residual dtype": (
        {"residual": tensor(ROWS, D, dtype=torch.bfloat16)},
        r"residual has dtype bfloat16; allowed: float32, float64",
    ),
    "bias size": ({"bias": tensor(D - 1)}, r"bias has shape \(5,\); expected \(6,\), the hidden size"),
    "bias stack": ({"bias": tensor(2, D)}, r"bias has shape \(2, 6\); expected \(1, 6\), one bias per map"),
    "alpha size": (
        {"alpha": tensor(ROWS + 1)},
        r"row_alpha has shape \(5,\); expected \(4,\), the number of rows of x",
    ),
    "alpha integer": ({"alpha": tensor(ROWS, dtype=torch.int64)}, rf"row_alpha has dtype int64; {FLOATS}"),
    "beta size": ({"beta": tensor(1)}, r"row_beta has shape \(1,\); expected \(4,\), the number of rows of x"),
    "row_map size": (
        {"row_map": tensor(1, dtype=torch.int32)},
        r"row_map has shape \(1,\); expected \(4,\), the number of rows of x",
    ),
    "row_map dtype": ({"row_map": tensor(ROWS, dtype=torch.int64)}, r"row_map has dtype int64; allowed: int32"),
    "row_map range": (
        {"row_map": torch.tensor([0, -1, 1, 0], dtype=torch.int32)},
        r"row_map holds 1; allowed: below 1, the number of maps",
    ),
    "map size": (
        {"map": dense(D + 1)},
        r"up has shape .*; expected \[G, 6, 6\] or what pack\(\) makes of it, with G >= 1",
    ),
    "map fp64 with fp32": (
        {"map": dense(D, torch.float64)},
        r"up has dtype float64; allowed: float32, bfloat16, float16, int8",
    ),
    "map fp32 with fp64": ({"x": tensor(ROWS, D, dtype=torch.float64)}, r"up has dtype float32; allowed: float64"),
    "map rank size": (
        {"map": AffineMap.low_rank(tensor(2, D + 1), tensor(D + 1, 2))},
        # Seven columns fill a panel as six do, so the packed form is caught by the other factor.
        r"up has shape .*; expected \[G, 6, 2\]|down has shape .*; expected \[G, 2, 6\]",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, backend: str) -> None:
    changes, message = REFUSED[name]
    case = Case("layer", tensor(ROWS, D), tensor(D), dense(D), tensor(D)).but(**changes)
    with pytest.raises(ValueError, match=message):
        case(backend)
    with pytest.raises(ValueError, match=message):
        case.in_place(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_tensor_in_both_roles(backend: str) -> None:
    case = make("rms", D, (ROWS,))
    with pytest.raises(ValueError, match="receive two outputs and must be different"):
        ops.affine_rms_norm_(case.x, case.weight, case.map, residual=case.x, backend=backend)


def test_unknown_backend() -> None:
    case = make("rms", D, (ROWS,))
    with pytest.raises(ValueError, match='backend is "fast"; allowed: auto, cpu, cuda, triton, reference'):
        case("fast")


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_device_without_a_kernel(backend: str) -> None:
    case = make("rms", D, (ROWS,))
    message = 'x is on device "meta"; backend="' if EXTENSION or backend == "auto" else "pure-Python installation"
    with pytest.raises(ValueError, match=message):
        case.but(x=case.x.to("meta"))(backend)


def test_tensors_on_two_devices() -> None:
    case = make("rms", D, (ROWS,))
    with pytest.raises(ValueError, match="weight is on device meta; expected cpu, the device of x"):
        case.but(weight=case.weight.to("meta"))("reference")


compiled = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")

INT8 = torch.int8
SCALES: dict[str, tuple[tuple[torch.Tensor | None, ...], str]] = {
    "absent": (
        (None, tensor(1, D, D, dtype=INT8), None, None),
        r"up_scale is absent, but up is int8; expected float32",
    ),
    "float map": ((None, tensor(1, D, D), None, tensor(1, D)), "up_scale is given, but up is not int8"),
    "dense map": ((None, tensor(1, D, D), tensor(1, 2), None), "down_scale is given, but down is not int8"),
    "size": (
        (None, tensor(1, D, D, dtype=INT8), None, tensor(1, D + 1)),
        r"up_scale has shape \(1, 7\); expected \(1, 6\), one factor per output column",
    ),
    "dtype": (
        (None, tensor(1, D, D, dtype=INT8), None, tensor(1, D, dtype=torch.float16)),
        "up_scale has dtype float16; allowed: float32",
    ),
    "factor": (
        (tensor(1, 2, D, dtype=INT8), tensor(1, D, 2), tensor(1, 3), None),
        r"down_scale has shape \(1, 3\); expected \(1, 2\), one factor per output column",
    ),
}


@compiled
@pytest.mark.parametrize("name", SCALES)
def test_scales_of_int8_maps(name: str) -> None:
    """AffineMap lets none of these through; the torch op and its fake kernel refuse them themselves."""
    (down, up, down_scale, up_scale), message = SCALES[name]
    rest = (down, up, down_scale, up_scale, None, None, None, None, 1.0, 1.0, 1e-6, 0.0)
    with pytest.raises(ValueError, match=message):
        torch.ops.incline_fast.affine_rms_norm(tensor(ROWS, D), None, tensor(D), *rest)
    with pytest.raises(ValueError, match=message):
        torch.ops.incline_fast.affine_rms_norm.default._op(  # the fake kernel, through the meta device
            tensor(ROWS, D).to("meta"), None, tensor(D).to("meta"), *[_meta(value) for value in rest]
        )


def _meta(value: object) -> object:
    return value.to("meta") if isinstance(value, torch.Tensor) else value


@compiled
def test_packed_map_that_is_not_contiguous() -> None:
    packed = torch.zeros(1, 1, D, 32)[..., ::2]
    with pytest.raises(ValueError, match=r"up is packed but not contiguous; pass up.contiguous\(\)"):
        torch.ops.incline_fast.affine_rms_norm(
            tensor(ROWS, D), None, tensor(D), None, packed, *[None] * 6, 1.0, 1.0, 1e-6, 0.0
        )


@compiled
def test_numbers_of_maps_that_differ() -> None:
    with pytest.raises(ValueError, match="down holds 2 maps; expected 3, as many as up"):
        torch.ops.incline_fast.affine_rms_norm(
            tensor(ROWS, D),
            None,
            tensor(D),
            tensor(2, 2, D),
            tensor(3, D, 2),
            *[None] * 6,
            1.0,
            1.0,
            0.0,
            0.0,
        )


@compiled
def test_output_that_overlaps_itself() -> None:
    case = make("rms", D, (ROWS,))
    with pytest.raises(ValueError, match="residual has stride 0 in dimension 0 of size 4; an output must not overlap"):
        ops.affine_rms_norm_(case.x[:1].expand(ROWS, D), case.weight, case.map, backend="cpu")
