"""What "auto" chooses on CUDA and what it says about it, on machines with and without the libraries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from incline_fast import ops
from incline_fast.maps import AffineMap
from incline_fast.ops import _arguments, _dispatch, _extension
from incline_fast.ops._arguments import op_tail
from incline_fast.solver import linalg

LIBRARY = Path("incline_fast/_cuda.abi3.so")
CUDA = torch.device("cuda:1")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Pretend that the CUDA library or Triton is there, or is not."""

    def pretend(*, cuda: bool, triton: bool) -> None:
        for module in (_dispatch, _extension):
            monkeypatch.setattr(module, "CUDA_EXTENSION", LIBRARY if cuda else None)
        monkeypatch.setattr(_dispatch, "CUDA_PROBLEM", "" if cuda else "no nvcc")
        monkeypatch.setattr(_dispatch, "TRITON", triton)

    return pretend


@pytest.mark.parametrize(
    ("cuda", "triton", "num_tokens", "gradient", "alike", "route"),
    [
        (True, True, 1, False, False, "cuda"),
        (True, True, 64, False, False, "cuda"),
        (True, True, 65, False, False, "triton"),
        (True, True, 65, False, True, "cuda"),
        (True, True, 65, True, False, "cuda"),
        (True, False, 4096, False, False, "cuda"),
        (False, True, 1, False, True, "triton"),
        (False, True, 65, False, True, "triton"),
    ],
)
def test_auto_on_cuda(
    installed, cuda: bool, triton: bool, num_tokens: int, gradient: bool, alike: bool, route: str
) -> None:
    installed(cuda=cuda, triton=triton)
    assert _dispatch.choose(CUDA, "auto", num_tokens, gradient, alike) == route
    if not gradient:
        told = ops.explain(device=CUDA, num_tokens=num_tokens, map_dtype=None if alike else torch.int8)
        assert told.startswith(f"{route}: ")
        assert told.endswith("This choice has not yet been measured on a GPU")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prompts_of_one_type_are_the_cuda_kernels(installed, dtype: torch.dtype) -> None:
    """One map, the map's type, the residual's: with any other one Triton's kernels keep what a product would round."""
    installed(cuda=True, triton=True)
    x = SimpleNamespace(is_cpu=False, device=torch.device(CUDA), dtype=dtype, shape=(5, 13, 8))
    like, other = SimpleNamespace(dtype=dtype), SimpleNamespace(dtype=torch.float32)
    one = SimpleNamespace(dtype=dtype, num_maps=1)
    assert _dispatch.route_of(x, None, one, "auto", False) == "cuda"
    assert _dispatch.route_of(x, like, one, "auto", False) == "cuda"
    assert _dispatch.route_of(x, other, one, "auto", False) == "triton"
    assert _dispatch.route_of(x, None, SimpleNamespace(dtype=torch.int8, num_maps=1), "auto", False) == "triton"
    assert _dispatch.route_of(x, None, SimpleNamespace(dtype=dtype, num_maps=2), "auto", False) == "triton"
    compiled = torch.compile(lambda x: x + _dispatch._are_alike(x.dtype, dtype, 1), fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1, dtype=dtype)).item() == 1
    x.dtype = one.dtype = torch.float32
    assert _dispatch.route_of(x, None, one, "auto", False) == "triton"
    assert ops.explain(device=CUDA, num_tokens=65, dtype=dtype).startswith("cuda: ")
    assert "65 tokens and one map have the same 16-bit type" in ops.explain(device=CUDA, num_tokens=65, dtype=dtype)
    assert ops.explain(device=CUDA, num_tokens=65, dtype=dtype, num_maps=2).startswith("triton: ")


def test_a_decode_step_is_one_launch_of_the_cuda_kernels() -> None:
    header = Path(__file__).parents[2] / "csrc" / "cuda" / "affine_norm" / "affine_norm.h"
    assert f"constexpr int kMaxRows = {_arguments.DECODE_TOKENS};" in header.read_text(encoding="utf-8")


def test_explain_says_where_torch_may_multiply(installed) -> None:
    fewest = min(_arguments.decode_limit(hidden, rank) for hidden in (1024, 4096, 8192) for rank in (0, 8, 64, 2000))
    for triton, unchanged in ((False, fewest), (True, _arguments.DECODE_TOKENS)):
        installed(cuda=not triton, triton=triton)
        for tokens in (unchanged, unchanged + 1):
            told = ops.explain(device=CUDA, num_tokens=tokens)
            assert ("rounding may depend on the number of tokens" in told) == (tokens > unchanged)


@pytest.mark.parametrize(("cuda", "route"), [(True, "cuda"), (False, "triton")])
def test_batch_invariance_keeps_to_one_family(
    installed, monkeypatch: pytest.MonkeyPatch, cuda: bool, route: str
) -> None:
    installed(cuda=cuda, triton=True)
    assert "may depend on the number of tokens" in ops.explain(device=CUDA, num_tokens=65)
    monkeypatch.setattr(_extension, "_batch_invariant", True)
    assert {_dispatch.choose(CUDA, "auto", num_tokens) for num_tokens in (1, 64, 65, 4096)} == {route}
    told = ops.explain(device=CUDA, num_tokens=65)
    assert told.startswith(f"{route}: ")
    assert "A row's bits do not depend on the number of tokens (set_batch_invariant(True))" in told


def test_batch_invariance_reaches_the_cuda_kernels(installed, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.ops.incline_fast, "set_batch_invariant", told.append, raising=False)
    installed(cuda=True, triton=True)
    for enabled in (True, False):
        ops.set_batch_invariant(enabled)
        assert _extension.batch_invariant() is enabled
    installed(cuda=False, triton=True)
    ops.set_batch_invariant(False)
    assert told == [True, False]


def test_programmatic_launches_are_set_in_the_cuda_library_too(installed, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(torch.ops.incline_fast, "set_programmatic_launch", told.append, raising=False)
    assert not _extension.programmatic_launch()
    installed(cuda=True, triton=True)
    for enabled in (True, False):
        ops.set_programmatic_launch(enabled)
        assert _extension.programmatic_launch() is enabled
    installed(cuda=False, triton=True)
    ops.set_programmatic_launch(False)
    assert told == [True, False]


def test_a_map_that_is_made_now_is_written_before_an_overlapping_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small kernel comes between, once; on the CPU, and where launches do not overlap, none."""
    between: list[int] = []
    up = SimpleNamespace(is_cuda=True, new_zeros=between.append)
    made, kept = (SimpleNamespace(keeps_aligned=lambda k=k: k, aligned=lambda: (None, up, None, None)) for k in (0, 1))
    _arguments.aligned_weights(made)
    monkeypatch.setattr(_extension, "_programmatic_launch", True)
    _arguments.aligned_weights(kept)
    assert between == []
    assert _arguments.aligned_weights(made) == (None, up, None, None)
    assert between == [1]
    map = AffineMap.low_rank(torch.ones(3, 8), torch.ones(8, 3))
    assert not map.keeps_aligned()
    first = _arguments.aligned_weights(map)
    assert map.keeps_aligned()
    assert _arguments.aligned_weights(map) is first
    map.up.add_(1)
    assert not map.keeps_aligned()


@pytest.mark.parametrize("route", ["cuda", "triton"])
def test_row_map_is_checked_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, route: str) -> None:
    map, row_map = AffineMap.dense(torch.eye(4)), torch.tensor([0, 7, -1], dtype=torch.int32)
    arguments = (map, None, 1.0, 1.0, row_map, 1e-6, 0.0)
    op_tail(route, *arguments)
    monkeypatch.setattr(_arguments, "CHECK_ON_GPU", True)
    with pytest.raises(ValueError, match="row_map holds 7; allowed: below 1, the number of maps"):
        op_tail(route, *arguments)
    op_tail("cpu", *arguments)


def test_row_map_is_not_read_during_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    row_map = SimpleNamespace(is_cuda=True, numel=lambda: 1, max=lambda: read.append(7) or 7)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    _arguments.check_row_map(row_map, 1)
    assert read == []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with pytest.raises(ValueError, match="row_map holds 7"):
        _arguments.check_row_map(row_map, 1)


def test_the_check_is_asked_for_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INCLINE_FAST_CHECK", raising=False)
    assert not _arguments._check_is_asked_for()
    monkeypatch.setenv("INCLINE_FAST_CHECK", "1")
    assert _arguments._check_is_asked_for()
    monkeypatch.setenv("INCLINE_FAST_CHECK", "yes")
    with pytest.raises(ValueError, match='INCLINE_FAST_CHECK is "yes"; allowed: 0, 1'):
        _arguments._check_is_asked_for()


@pytest.mark.parametrize(("triton", "gradient"), [(False, False), (True, True)])
def test_auto_without_kernels_names_the_way_out(installed, triton: bool, gradient: bool) -> None:
    installed(cuda=False, triton=triton)
    with pytest.raises(ValueError, match=r'backend="auto" has kernels for "cpu" only \(no nvcc; .*reference'):
        _dispatch.choose(CUDA, "auto", 1, gradient)


def test_backends_that_are_not_there(installed) -> None:
    installed(cuda=False, triton=False)
    with pytest.raises(ValueError, match='backend="cuda" has no kernels: no nvcc'):
        ops.explain("cuda", device=CUDA)
    with pytest.raises(ValueError, match='backend="triton" needs Triton: pip install triton'):
        ops.explain("triton", device=CUDA)


def test_backends_that_cannot_serve(installed) -> None:
    installed(cuda=True, triton=True)
    for backend in ("cuda", "triton"):
        with pytest.raises(ValueError, match=f'x is on device "cpu"; backend="{backend}" serves CUDA tensors only'):
            ops.explain(backend)
    with pytest.raises(ValueError, match='x is on device "cuda:1"; backend="cpu" serves CPU tensors only'):
        ops.explain("cpu", device=CUDA)
    with pytest.raises(ValueError, match='backend="triton" has no gradient, and an input requires one'):
        _dispatch.choose(CUDA, "triton", 1, True)


def test_kernels_for_a_device(installed) -> None:
    installed(cuda=False, triton=True)
    assert _dispatch.has_kernels(torch.device("cpu"), torch.float64)
    assert _dispatch.has_kernels(CUDA, torch.bfloat16)
    assert not _dispatch.has_kernels(CUDA, torch.float64)
    installed(cuda=False, triton=False)
    assert not _dispatch.has_kernels(CUDA, torch.bfloat16)


def test_linalg_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's until the blocked algorithm is measured there; blocked where it is asked for and installed."""
    for cuda, triton in ((None, False), (LIBRARY, False), (None, True)):
        monkeypatch.setattr(linalg, "CUDA_EXTENSION", cuda)
        monkeypatch.setattr(linalg, "TRITON", triton)
        if cuda is None and not triton:
            told = "torch: neither its CUDA kernels nor Triton are installed"
            assert linalg.explain(512, device=CUDA).startswith(told)
            continue
        assert linalg.explain(512, device=CUDA) == "torch: the blocked algorithm has not yet been measured on a GPU"
        assert linalg.explain(512, device=CUDA, backend="blocked") == 'blocked: backend="blocked" was asked for'


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_gpu_kernels_get_aligned_rows(dtype: torch.dtype) -> None:
    """A rank of 20 is filled up to 32 with zeros, once; the map itself stays what it was."""
    g = torch.Generator().manual_seed(0)
    map = AffineMap.low_rank(torch.randn(20, 48, generator=g), torch.randn(48, 20, generator=g))
    map = map.quantize() if dtype is torch.int8 else map.to(dtype)
    down, up, down_scale, up_scale, *_ = op_tail("cuda", map, None, 1.0, 1.0, None, 1e-6, 0.0)
    assert (down.shape, up.shape) == ((1, 32, 48), (1, 48, 32))
    filled = AffineMap(down, up, down_scale=down_scale, up_scale=up_scale)
    assert torch.equal(filled.as_dense(), map.as_dense())
    assert map.rank == 20
    assert map.aligned() is map.aligned()


def test_aligned_maps_pass_gradients_on() -> None:
    down = torch.randn(1, 3, 8, requires_grad=True)
    up = torch.randn(1, 8, 3, requires_grad=True)
    aligned = AffineMap(down, up).aligned()
    (aligned[0].sum() + aligned[1].sum()).backward()
    assert torch.equal(down.grad, torch.ones_like(down))
    assert torch.equal(up.grad, torch.ones_like(up))


def test_aligned_maps_are_contiguous() -> None:
    W = torch.randn(8, 8).T
    (down, up, *_) = AffineMap.dense(W).aligned()
    assert down is None
    assert up.is_contiguous()
    assert torch.equal(up[0], W)


def test_a_library_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The CPU goes on being served, and whoever asks for CUDA is told what the loader said."""
    monkeypatch.setattr(_extension, "EXTENSION", LIBRARY)
    monkeypatch.setattr(_extension, "_FOLDER", tmp_path)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _extension._load_cuda_extension() == (None, f"torch {torch.__version__} was built without CUDA")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    path, why = _extension._load_cuda_extension()
    assert path is None
    assert why.endswith("_cuda.abi3.so was not built, because there was no nvcc")
    (tmp_path / "_cuda.abi3.so").write_bytes(b"not a library")
    path, why = _extension._load_cuda_extension()
    assert path is None
    assert "does not load beside torch" in why
    assert "file too short" in why
