"""The GPU script's logic on an emulated device: CPU tensors, CPU backends, and a timer that makes times up."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_cases import BACKENDS

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import checks, measure, providers
from benchmarks.gpu.measure import measure_all, measure_cholesky, measure_problem
from benchmarks.gpu.report import write_report
from benchmarks.gpu.stages import Outcome, Stage, exit_status, run_stages
from incline_fast import ops
from incline_fast.bench import Problem, problems, write_csv
from incline_fast.bench.providers import Provider

BF16 = torch.bfloat16
TINY = Problem("rms", 2, 32, 4)


class MadeUpDevice:
    """Runs on the CPU at once; each piece of work takes as many microseconds as there were pieces before it."""

    torch_device = torch.device("cpu")
    name = "NVIDIA H100 (made up)"
    backends = tuple(BACKENDS)

    def __init__(self) -> None:
        self.clock = 100.0

    def synchronize(self) -> None:
        pass

    def stream(self) -> Any:
        return nullcontext()

    def capture(self, work: Callable[[], object]) -> Callable[[], object]:
        work()
        return work

    def microseconds(self, work: Callable[[], object]) -> float:
        work()
        self.clock += 1
        return self.clock


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "DRAM_BYTES", 1 << 14)
    monkeypatch.setattr(measure, "CALLS", 3)
    # Inductor would compile for minutes; what it would compile is what runs here.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_stages_fail_one_by_one_and_the_others_go_on(tmp_path: Path) -> None:
    made = tmp_path / "made"
    stages = [
        Stage("good", python(f"open({str(made)!r}, 'w')"), 60, (made,)),
        Stage("bad", python("print('the reason'); raise SystemExit(3)"), 60),
        Stage("slow", python("import time; print('begun', flush=True); time.sleep(60)"), 1),
        Stage("empty", python(""), 60, (tmp_path / "absent",)),
        Stage("tool", python(""), 60, tool="no-such-tool"),
        Stage("last", python("import os; print(os.getcwd())"), 60),
    ]
    seen: list[Outcome] = []
    outcomes = run_stages(stages, tmp_path, tmp_path / "logs", 100, lambda tool: None, seen.append)
    assert seen == outcomes
    assert [o.status for o in outcomes] == ["passed", "failed", "timed out", "failed", "not run", "passed"]
    details = [o.detail for o in outcomes]
    assert "exit status 3" in details[1]
    assert "the reason" in details[1]
    assert "begun" in details[2]
    assert outcomes[2].seconds < 30
    assert "did not produce" in details[3]
    assert details[4] == "no-such-tool is not installed"
    assert (tmp_path / "logs" / "last.log").read_text().strip() == str(tmp_path)
    assert exit_status(outcomes) == 1
    assert exit_status([outcomes[0], outcomes[-1]]) == 0


def test_the_whole_budget_ends_the_run(tmp_path: Path) -> None:
    stages = [Stage("slow", python("import time; time.sleep(60)"), 60), Stage("next", python(""), 60)]
    outcomes = run_stages(stages, tmp_path, tmp_path, 0.5, lambda tool: None, lambda outcome: None)
    assert [o.status for o in outcomes] == ["timed out", "not run"]
    assert "budget" in outcomes[1].detail


def test_the_script_runs_what_it_names_and_writes_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = script.stages(tmp_path)
    assert [stage.name for stage in real][:3] == ["build", "checks", "measure"]
    assert {stage.tool for stage in real[3:]} == {"compute-sanitizer"}
    assert all(0 < stage.seconds < script.TOTAL_SECONDS < 600 for stage in real)
    (tmp_path / "gpu.csv").write_text("of an earlier run")
    monkeypatch.setattr(script, "stages", lambda output: [Stage("build", python("raise SystemExit('no nvcc')"), 60)])
    assert script.main(tmp_path) == 1
    page = (tmp_path / "gpu.md").read_text()
    assert "| build | failed |" in page
    assert "no nvcc" in page
    assert "Nothing was measured." in page


@pytest.mark.parametrize("module", ["checks", "measure"])
def test_without_a_gpu_the_stages_say_so(module: str, tmp_path: Path) -> None:
    """The commands themselves: importable, with the arguments that the script gives them, and loud without a GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (stage,) = (stage for stage in script.stages(tmp_path) if stage.name == module)
    (outcome,) = run_stages([stage], script.ROOT, tmp_path, 100, lambda tool: None, lambda outcome: None)
    assert outcome.status == "failed"
    assert "torch.cuda.is_available() is False" in outcome.detail


@pytest.mark.parametrize("mode", ["dram", "cache", "launch"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_every_provider_is_checked_and_timed(norm: str, mode: str) -> None:
    problem = replace(TINY, norm=norm, mode=mode, dtype=BF16, map_dtype=BF16)
    names = [name for name, reason in providers.available(problem, MadeUpDevice.backends).items() if not reason]
    assert {"eager", "hook", "compile", "cublas+compiled", *MadeUpDevice.backends} <= set(names)
    rows, skipped = measure_problem(problem, MadeUpDevice(), names)
    assert not skipped
    assert [row.backend for row in rows] == names
    for row in rows:
        assert (row.device, row.mode, row.num_tokens, row.rank) == ("NVIDIA H100 (made up)", mode, 2, 4)
        assert 0 < row.us_p20 <= row.us_p50 <= row.us_p80
        assert row.ratio_vs_eager == pytest.approx(1, abs=0.1)
    # 34 pieces of work on a clock that starts at 100; a piece is all calls that walk through the copies.
    calls = max(3, problem.copies if mode == "dram" else 1)
    assert 100 / calls < rows[0].us_p50 < 300 / calls


def test_int8_maps_are_measured_against_torch_with_the_same_map() -> None:
    rows, skipped = measure_problem(replace(TINY, map_dtype=torch.int8), MadeUpDevice(), ["eager", BACKENDS[-1]])
    assert not skipped
    assert {row.map_dtype for row in rows} == {"int8"}


@pytest.mark.parametrize("library", ["liger", "quack", "flashinfer"])
def test_other_libraries_are_called_as_they_are_documented(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins with the published signatures; absent libraries are left out with the reason."""
    name = f"cublas+{library}"
    monkeypatch.setitem(sys.modules, _MODULES[library], None)  # type: ignore[arg-type]
    assert "ModuleNotFoundError" in providers.available(TINY, ())[name]
    assert "LayerNorm" in providers.available(replace(TINY, norm="layer"), ())[name]
    for parent in _parents(_MODULES[library]):
        monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
    monkeypatch.setitem(sys.modules, _MODULES[library], _STAND_INS[library])  # type: ignore[arg-type]
    assert providers.available(TINY, ())[name] == ""
    for rank in (None, 4):
        rows, skipped = measure_problem(replace(TINY, rank=rank), MadeUpDevice(), ["eager", name])
        assert not skipped
        assert [row.backend for row in rows] == ["eager", name]


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
    monkeypatch.setitem(providers.PROVIDERS, "hook", Provider(lambda data: lambda x, i: (x, x)))
    monkeypatch.setitem(providers.PROVIDERS, "compile", Provider(lambda data: 1 / 0))
    rows, skipped = measure_problem(TINY, MadeUpDevice(), ["eager", "hook", "compile"])
    assert [row.backend for row in rows] == ["eager"]
    assert [(name, reason.partition(":")[0]) for _, name, reason in skipped] == [
        ("hook", "ArithmeticError"),
        ("compile", "ZeroDivisionError"),
    ]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the blocked factorisation needs the compiled kernels")
def test_cholesky_is_checked_and_timed() -> None:
    rows, skipped = measure_cholesky(40, torch.float64, MadeUpDevice())
    assert not skipped
    assert [(row.op, row.backend, row.hidden_size) for row in rows] == [
        ("cholesky_ex", "cusolver", 40),
        ("cholesky_ex", "blocked", 40),
    ]


def test_measurements_end_in_time_and_name_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shapes = [TINY, replace(TINY, num_tokens=3)]
    rows, skipped = measure_all(MadeUpDevice(), shapes, (), seconds=-1)
    assert not rows
    assert [name for name, provider, _ in skipped if provider == "all"] == [str(problem) for problem in shapes]
    monkeypatch.setattr(measure, "PROBLEMS", shapes)
    monkeypatch.setattr(measure, "CHOLESKY_SIZES", ())
    monkeypatch.setattr(measure, "with_roofline", lambda rows, device: rows)
    assert measure.main(tmp_path, -1, MadeUpDevice()) == 1
    assert measure.main(tmp_path, 100, MadeUpDevice()) == 0
    lines = list(csv.DictReader((tmp_path / "gpu.csv").read_text().splitlines()))
    assert {line["num_tokens"] for line in lines} == {"2", "3"}
    assert "cublas+quack" in (tmp_path / "skipped.csv").read_text()


def test_the_roofline_of_a_run_bounds_its_rows() -> None:
    rows, _ = measure_problem(TINY, MadeUpDevice(), ["eager"])
    cached, _ = measure_problem(replace(TINY, mode="cache"), MadeUpDevice(), ["eager"])
    first, second = measure.with_roofline([*rows, *cached], MadeUpDevice(), elements=1 << 10, side=64)
    assert first.pct_roofline is not None
    assert 0 < first.pct_roofline <= 100
    assert second.pct_roofline is None


TINY_SHAPES: tuple[checks.Shape, ...] = (
    ("rms", 3, 40, None, BF16, BF16, True, 2),
    ("layer", 2, 40, 5, torch.float32, torch.int8, False, 1),
)


def verdicts(device: MadeUpDevice, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    monkeypatch.setattr(checks, "SMALL", TINY_SHAPES)
    return dict(checks.run_checks(device, TINY_SHAPES))


def test_checks_pass_where_the_kernels_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    found = verdicts(MadeUpDevice(), monkeypatch)
    kinds = {name.split()[0] for name in found}
    assert kinds == {"parity", "replay", "streams", "cholesky"}
    assert {name: reason for name, reason in found.items() if reason and not name.startswith("cholesky")} == {}
    if "cpu" in BACKENDS:
        assert not any(found.values())


def test_checks_see_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    right = ops.affine_rms_norm
    monkeypatch.setattr(ops, "affine_rms_norm", lambda *a, **k: tuple(1.1 * t for t in right(*a, **k)))
    monkeypatch.setattr(ops, "affine_layer_norm_", lambda *a, **k: 1 / 0)
    found = verdicts(MadeUpDevice(), monkeypatch)
    for name, reason in found.items():
        if name.startswith("parity"):
            assert ("is off by" if "'rms'" in name else "ZeroDivisionError") in reason
    assert checks.main(small=True, device=MadeUpDevice()) == 1
    assert "FAILED parity" in capsys.readouterr().out


def test_checks_see_a_graph_that_keeps_its_first_result(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stale(MadeUpDevice):
        def capture(self, work: Callable[[], object]) -> Callable[[], object]:
            work()
            return lambda: None

    found = verdicts(Stale(), monkeypatch)
    assert all("other bits" in reason for name, reason in found.items() if name.startswith("replay"))


def test_checks_see_streams_that_disturb_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0

    def disturbed(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return tuple(t + (calls == 5) for t in right(*arguments, **options))

    right = ops.affine_rms_norm
    monkeypatch.setattr(ops, "affine_rms_norm", disturbed)
    case = checks.make(TINY_SHAPES[0], torch.device("cpu"))
    assert checks._streams(case, "reference", MadeUpDevice()) == "1 of 40 calls give other bits"


def test_the_page_sets_measurements_beside_predictions(tmp_path: Path) -> None:
    problem = Problem("rms", 1, 64, None, BF16, BF16)
    rows, _ = measure_problem(problem, MadeUpDevice(), ["eager", "reference"])
    rows = [replace(rows[0], us_p50=5.0), replace(rows[1], backend="cuda", us_p50=10.0)]
    write_csv(rows, tmp_path / "gpu.csv")
    (tmp_path / "skipped.csv").write_text("problem,provider,reason\nevery problem,cublas+quack,ModuleNotFoundError\n")
    write_report(tmp_path, [Outcome("build", "passed", 12.0)])
    page = (tmp_path / "gpu.md").read_text()
    assert "| build | passed | 12 |" in page
    assert "Predictions are the roofline model's for an H100" in page
    predicted = script_prediction(problem)
    assert f"| cuda | 10.00 | {predicted:.2f} | {10 / predicted:.2f} |" in page
    assert "eager 5.00, cuda 10.00 (**we lose**)" in page
    assert "| every problem | cublas+quack | ModuleNotFoundError |" in page
    assert (tmp_path / "gpu.png").read_bytes().startswith(b"\x89PNG")


def script_prediction(problem: Problem) -> float:
    from benchmarks.roofline import GPUS, predict

    return predict(GPUS["H100"], problem).us_predicted
