"""Measuring on an emulated device: CPU tensors, CPU backends, and a timer that makes times up."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from gpu_device import MadeUpDevice
from op_cases import BACKENDS

from benchmarks.gpu import measure, norms, providers, shapes
from benchmarks.gpu.cholesky import measure_cholesky
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.measure import AGAIN, measure_problem, measure_set
from benchmarks.gpu.measurements import Measurements
from benchmarks.gpu.providers import GPU_PROVIDERS, GpuProvider, ours
from benchmarks.gpu.shapes import BASELINE, ShapeSet
from benchmarks.gpu.stage_process import LostDeviceError
from benchmarks.gpu.tables import read
from incline_fast.bench import Problem, problems

BF16 = torch.bfloat16
TINY = Problem("rms", 2, 32, 4)
OTHERS = ("quack", "flashinfer", "liger")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "DRAM_BYTES", 1 << 14)
    monkeypatch.setattr(measure, "CALLS", 3)
    # Inductor would compile for minutes; what it would compile is what runs here.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    for backend in BACKENDS:
        monkeypatch.setitem(GPU_PROVIDERS, backend, ours(backend))


def providers_here(problem: Problem) -> list[str]:
    """Names of those that the CPU can stand in for."""
    away = ("cuda", "triton", "read alone", *(f"cublas+{name}" for name in OTHERS))
    return [name for name, one in GPU_PROVIDERS.items() if name not in away and not one.unfit(problem)]


@pytest.mark.parametrize("mode", ["dram", "cache", "launch"])
@pytest.mark.parametrize(("norm", "rank", "tokens"), [("rms", 4, 2), ("layer", None, 1)])
def test_every_provider_is_checked_and_timed(norm: str, rank: int | None, tokens: int, mode: str) -> None:
    problem = Problem(norm, tokens, 32, rank, BF16, BF16, mode)
    names = providers_here(problem)
    assert {"eager", "hook", "compile", BASELINE, "folded (other rounding)", *BACKENDS} <= set(names)
    assert ("addmv" in names) == (tokens == 1)
    begun: list[str] = []
    timed, skipped = measure_problem(problem, MadeUpDevice(), names, begun.append)
    assert not skipped
    assert {one.provider for one in timed} == {*names, AGAIN}
    assert begun == ["inputs", *names, "timing", *names]
    kinds = {one.provider: one.kind for one in timed}
    assert kinds["norm alone"] == "part"
    assert kinds[BACKENDS[-1]] == "ours"
    assert kinds[AGAIN] == "rival"
    # As many pieces of work before each as providers and rounds, on a clock that starts at 100.
    calls = max(3, problem.copies if mode == "dram" else 1)
    latest = 101 + (len(timed) + 1) * 40
    assert all(100 / calls < value < latest / calls for one in timed for value in one.microseconds)


def test_int8_maps_are_measured_against_torch_with_the_same_map() -> None:
    timed, skipped = measure_problem(replace(TINY, map_dtype=torch.int8), MadeUpDevice(), ["eager", BACKENDS[-1]])
    assert not skipped
    assert [one.provider for one in timed] == ["eager", BACKENDS[-1]]


@pytest.mark.parametrize("library", OTHERS)
def test_other_libraries_are_called_as_they_are_documented(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the published signatures; absent libraries are left out with the reason."""
    name = f"cublas+{library}"
    monkeypatch.setitem(sys.modules, _MODULES[library], None)  # type: ignore[arg-type]
    assert "ModuleNotFoundError" in GPU_PROVIDERS[name].unfit(TINY)
    assert "LayerNorm" in GPU_PROVIDERS[name].unfit(replace(TINY, norm="layer"))
    for parent in _parents(_MODULES[library]):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, _MODULES[library], _STAND_INS[library])  # type: ignore[arg-type]
    assert norms.ADD_NORMS[library].unfit(TINY) == ""
    for rank in (None, 4):
        timed, skipped = measure_problem(replace(TINY, rank=rank), MadeUpDevice(), ["eager", name])
        assert not skipped
        assert [one.provider for one in timed] == ["eager", name]


_MODULES = {"liger": "liger_kernel.ops.fused_add_rms_norm", "quack": "quack", "flashinfer": "flashinfer.norm"}


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def _fused_in_place(input: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> None:
    residual.add_(input)
    input.copy_(_norm(residual, weight, eps))


_STAND_INS = {
    "liger": SimpleNamespace(
        LigerFusedAddRMSNormFunction=SimpleNamespace(apply=lambda X, R, W, eps: (_norm(X + R, W, eps), X + R))
    ),
    "quack": SimpleNamespace(rmsnorm=lambda x, weight, residual, eps: (_norm(x + residual, weight, eps), x + residual)),
    "flashinfer": SimpleNamespace(fused_add_rmsnorm=_fused_in_place),
}


def test_a_wrong_or_broken_provider_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(GPU_PROVIDERS, "hook", GpuProvider(lambda data: lambda x, i: (x, x)))
    monkeypatch.setitem(GPU_PROVIDERS, "compile", GpuProvider(lambda data: 1 / 0))
    timed, skipped = measure_problem(TINY, MadeUpDevice(), ["eager", "hook", "compile", "addmv", "read alone"])
    assert [one.provider for one in timed] == ["eager"]
    assert [(one.provider, one.reason.partition(":")[0]) for one in skipped] == [
        ("hook", "ArithmeticError"),
        ("compile", "ZeroDivisionError"),
        ("addmv", "is for one token"),
        ("read alone", "reads with a Triton kernel, which needs a GPU"),
    ]


def test_what_goes_wrong_during_the_timing_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose results turn bad, and one whose graph keeps writing what it first wrote."""
    calls = 0

    def decaying(data: providers.DeviceData) -> Callable[..., tuple[torch.Tensor, ...]]:
        right = GPU_PROVIDERS["eager"].make(data)

        def run(x: torch.Tensor, i: int) -> tuple[torch.Tensor, ...]:
            nonlocal calls
            calls += 1
            return tuple(t * (1 + (calls > 20)) for t in right(x, i))

        return run

    monkeypatch.setitem(GPU_PROVIDERS, "hook", GpuProvider(decaying))
    timed, skipped = measure_problem(TINY, MadeUpDevice(), ["eager", "hook"])
    assert [one.provider for one in timed] == ["eager"]
    assert "ArithmeticError" in skipped[0].reason

    class Stale(MadeUpDevice):
        def capture(self, work: Callable[[], object]) -> Callable[[], object]:
            work()
            return lambda: None

    made = measure._Candidate

    def remember(*arguments: object) -> measure._Candidate:
        candidate = made(*arguments)  # type: ignore[arg-type]
        candidate.captured[:] = [tuple(torch.zeros_like(t) for t in candidate.captured[0])]
        return candidate

    monkeypatch.setattr(measure, "_Candidate", remember)
    timed, skipped = measure_problem(TINY, Stale(), ["eager"])
    assert not timed
    assert "ArithmeticError" in skipped[0].reason


def test_a_lost_device_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    device = MadeUpDevice()

    def losing(data: providers.DeviceData) -> Callable[..., tuple[torch.Tensor, ...]]:
        device.lost = True
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setitem(GPU_PROVIDERS, "hook", GpuProvider(losing))
    with pytest.raises(LostDeviceError, match=r"hook on rms 2 32 4 .* illegal memory access"):
        measure_problem(TINY, device, ["eager", "hook"])


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the blocked factorisation needs the compiled kernels")
def test_cholesky_is_checked_and_timed() -> None:
    timed, skipped = measure_cholesky(40, torch.float64, MadeUpDevice())
    assert not skipped
    assert [(one.provider, one.kind) for one in timed] == [("cusolver", "rival"), ("blocked", "ours")]


@pytest.fixture
def tiny_set(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    """A set "dense" of three tiny shapes."""
    tiny = [TINY, replace(TINY, num_tokens=3), replace(TINY, rank=None)]
    monkeypatch.setitem(shapes.SETS, "dense", ShapeSet(tuple(tiny), ("eager", BASELINE, "hook")))
    return tiny


def run_set(folder: Path, seconds: float = 100, device: MadeUpDevice | None = None) -> bool:
    device = device or MadeUpDevice()
    table = Measurements(folder, "dense", device)
    return measure_set("dense", device, table, Journal(folder / "dense.journal"), seconds, lambda: 0.0)


def test_tables_grow_shape_by_shape(tiny_set: list[Problem], tmp_path: Path) -> None:
    assert run_set(tmp_path)
    rows = read(tmp_path / "measurements.csv")
    assert [row["backend"] for row in rows] == ["eager", BASELINE, "hook", AGAIN] * 3
    assert [row["num_tokens"] for row in rows[::4]] == ["2", "3", "2"]
    first = rows[0]
    assert (first["stage"], first["op"], first["device"]) == ("dense", "affine_rms_norm", "NVIDIA H100 (made up)")
    assert first["baseline"] == BASELINE
    assert float(first["us_p20"]) <= float(first["us_p50"]) <= float(first["us_p80"])
    assert float(rows[1]["ratio"]) == 1
    assert float(rows[3]["ratio"]) == pytest.approx(1, abs=0.1)
    assert [row["problem"] for row in read(tmp_path / "clocks.csv")] == [str(problem) for problem in tiny_set]
    assert read(tmp_path / "clocks.csv")[0]["clocks.sm"] == "1980"
    assert not read(tmp_path / "skipped.csv")
    assert run_set(tmp_path)  # all is done: nothing is added
    assert len(read(tmp_path / "measurements.csv")) == 12


def test_a_stage_goes_on_without_the_provider_that_crashed(tiny_set: list[Problem], tmp_path: Path) -> None:
    names = [str(problem) for problem in tiny_set]
    before = Journal(tmp_path / "dense.journal")
    before.finish(names[0])
    before.begin(names[1], "eager")
    before.begin(names[1], "hook")
    assert run_set(tmp_path)
    rows = read(tmp_path / "measurements.csv")
    assert [row["backend"] for row in rows] == ["eager", BASELINE, AGAIN, "eager", BASELINE, "hook", AGAIN]
    (skipped,) = read(tmp_path / "skipped.csv")
    assert (skipped["problem"], skipped["provider"]) == (names[1], "hook")
    assert "crashed in an earlier attempt" in skipped["reason"]


def test_a_stage_ends_in_time_and_names_what_is_missing(tiny_set: list[Problem], tmp_path: Path) -> None:
    assert not run_set(tmp_path, seconds=-1)
    assert not read(tmp_path / "measurements.csv")
    skipped = read(tmp_path / "skipped.csv")
    assert [(row["problem"], row["provider"]) for row in skipped] == [(str(problem), "all") for problem in tiny_set]
    assert "were used up" in skipped[0]["reason"]


def test_a_shape_that_cannot_be_made_costs_only_itself(
    tiny_set: list[Problem], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = measure.DeviceData

    def out_of_memory(problem: Problem, device: torch.device) -> providers.DeviceData:
        if problem.num_tokens == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(problem, device)

    monkeypatch.setattr(measure, "DeviceData", out_of_memory)
    assert not run_set(tmp_path)
    assert len(read(tmp_path / "measurements.csv")) == 8
    assert "out of memory" in read(tmp_path / "skipped.csv")[0]["reason"]


def test_the_sets_hold_the_shapes_of_the_headline() -> None:
    assert {one for name in shapes.SETS for one in shapes.SETS[name].providers} <= set(GPU_PROVIDERS) | set(BACKENDS)
    for name in ("dense", "low-rank"):
        found = {(p.num_tokens, p.hidden_size) for p in shapes.SETS[name].problems}
        assert found == {(m, d) for m in (1, 4, 16, 64) for d in (2048, 4096, 8192)}
        assert not {"compile", "hook"} & set(shapes.SETS[name].providers)
    assert all(len({str(p) for p in one.problems}) == len(one.problems) for one in shapes.SETS.values())
