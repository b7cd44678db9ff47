"""The public ops on the Triton route: what they hand over is what the kernels expect."""

from __future__ import annotations

import pytest
import torch
from op_cases import make
from test_numerics import check

from emulator.triton_driver import Launch
from incline_fast.ops import _arguments, affine_norm

pytestmark = pytest.mark.gpu_emulated
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def always_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors go to Triton, whose driver is emulated; nothing else of the dispatch is replaced."""
    monkeypatch.setattr(affine_norm, "route_of", lambda *_: "triton")


@pytest.mark.parametrize("map_dtype", [BF16, torch.int8])
@pytest.mark.parametrize("rank", [None, 20])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_public_ops(norm: str, rank: int | None, map_dtype: torch.dtype, launches: list[Launch]) -> None:
    """Both forms, with a residual and without; a rank that is no multiple of 16 is filled up with zeros."""
    row_map = torch.tensor([1, -1, 0], dtype=torch.int32)
    strengths = {"alpha": torch.tensor([0.5, 1.0, -0.5]), "beta": 0.75, "weight_offset": 1.0}
    for residual in (None, torch.float32):
        kinds = {"dtype": BF16, "map_dtype": map_dtype, "residual_dtype": residual}
        check(make(norm, 48, (3,), rank=rank, num_maps=2, row_map=row_map, **strengths, **kinds), "triton")
    assert len(launches) == 4


def test_a_row_map_past_the_last_map_is_an_error_where_it_is_checked(
    launches: list[Launch], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make("layer", 48, (3,), dtype=BF16, num_maps=2, row_map=torch.tensor([0, 2, -1], dtype=torch.int32))
    y, _ = case("triton")
    assert y.isnan().all(1).tolist() == [False, True, False]
    launches.clear()
    monkeypatch.setattr(_arguments, "CHECK_ON_GPU", True)
    for form in (case, case.in_place):
        with pytest.raises(ValueError, match="row_map holds 2; allowed: below 2, the number of maps"):
            form("triton")
    assert launches == []
