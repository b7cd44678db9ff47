"""The checks of a GPU run on an emulated device: they pass right kernels, see wrong ones, and go on behind a crash."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_device import MadeUpDevice
from op_cases import BACKENDS

from benchmarks.gpu import checks
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.stage_process import LostDeviceError
from benchmarks.gpu.tables import read
from incline_fast import ops

BF16 = torch.bfloat16
TINY_SHAPES: tuple[checks.Shape, ...] = (
    ("rms", 3, 40, None, BF16, BF16, True, 2),
    ("layer", 2, 40, 5, torch.float32, torch.int8, False, 1),
)


class CudaNamed(MadeUpDevice):
    backends = ("cuda", "triton")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "SMALL", TINY_SHAPES)


def verdicts(device: MadeUpDevice) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, check in checks.all_checks(device, TINY_SHAPES):
        try:
            found[name] = check()
        except Exception as error:
            found[name] = type(error).__name__
    return found


def run(folder: Path, device: MadeUpDevice | None = None) -> int:
    arguments = Namespace(small=True, stage="small-checks", backend=None, output=folder, work=folder)
    return checks.main(arguments, device or MadeUpDevice())


def test_checks_pass_where_the_kernels_are_right(tmp_path: Path) -> None:
    found = verdicts(MadeUpDevice())
    assert {name.split()[0] for name in found} == {"parity", "replay", "streams", "overlap", "cholesky"}
    assert {name: reason for name, reason in found.items() if reason and not name.startswith("cholesky")} == {}
    if "cpu" in BACKENDS:
        assert run(tmp_path) == 0
        rows = read(tmp_path / "checks.csv")
        assert [row["check"] for row in rows] == list(found)
        assert {row["result"] for row in rows} == {"passed"}


def test_checks_see_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = ops.affine_rms_norm
    monkeypatch.setattr(ops, "affine_rms_norm", lambda *a, **k: tuple(1.1 * t for t in right(*a, **k)))
    monkeypatch.setattr(ops, "affine_layer_norm_", lambda *a, **k: 1 / 0)
    assert run(tmp_path) == 1
    rows = [row for row in read(tmp_path / "checks.csv") if row["check"].startswith("parity")]
    assert len(rows) == 2 * len(BACKENDS)
    for row in rows:
        assert row["result"] == "failed"
        assert ("is off by" if " rms " in row["check"] else "ZeroDivisionError") in row["reason"]


def test_checks_see_launches_that_overlap_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that reads an unfinished x where launches overlap. This device's replay makes the calls anew, when they
    do not overlap any more."""
    right, on = ops.affine_rms_norm, [False]
    monkeypatch.setattr(ops, "set_programmatic_launch", lambda enabled: on.__setitem__(0, enabled))
    monkeypatch.setattr(ops, "affine_rms_norm", lambda x, *a, **k: right(0 * x if on[0] else x, *a, **k))
    found = verdicts(MadeUpDevice())
    overlaps = {name: reason for name, reason in found.items() if name.startswith("overlap")}
    assert overlaps
    for name, reason in overlaps.items():
        told = "overlapping launches give other bits outside of a graph"
        assert reason == (told if " rms " in name else "")


def test_checks_see_bulk_copies_that_give_other_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    case, on = checks.make(TINY_SHAPES[0], torch.device("cpu")), [True]
    monkeypatch.setattr(checks, "set_bulk_copies", lambda enabled: on.__setitem__(0, enabled))
    assert checks._bulk(case, "reference", MadeUpDevice()) == ""
    right = ops.affine_rms_norm
    monkeypatch.setattr(ops, "affine_rms_norm", lambda x, *a, **k: right(2 * x if on[0] else x, *a, **k))
    assert checks._bulk(case, "reference", MadeUpDevice()) == "bulk copies, or a cluster, give other bits"
    assert on == [True]
    names = [name for name, _ in checks.all_checks(CudaNamed(), checks.RING)]
    assert sum(name.startswith("bulk cuda") for name in names) == len(checks.RING)


def test_checks_see_a_graph_that_keeps_its_first_result() -> None:
    class Stale(MadeUpDevice):
        def capture(self, work: Callable[[], object]) -> Callable[[], object]:
            work()
            return lambda: None

    found = verdicts(Stale())
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


def test_behind_a_crash_the_other_checks_are_made(tmp_path: Path) -> None:
    names = [name for name, _ in checks.all_checks(MadeUpDevice(), TINY_SHAPES)]
    before = Journal(tmp_path / "small-checks.journal")
    before.finish(names[0])
    before.begin(names[1])  # and here the process ended
    assert run(tmp_path) == 1
    rows = read(tmp_path / "checks.csv")
    assert [row["check"] for row in rows] == names[1:]
    assert rows[0]["reason"] == "crashed or hung in an earlier attempt"


def test_a_lost_device_is_a_failed_check_and_a_new_process(tmp_path: Path) -> None:
    device = MadeUpDevice()

    def losing() -> str:
        device.lost = True
        raise RuntimeError("unspecified launch failure")

    recorded: list[tuple[str, str]] = []
    jobs = iter([("first", lambda: ""), ("second", losing), ("third", lambda: "")])
    with pytest.raises(LostDeviceError, match="second: RuntimeError: unspecified"):
        checks.run_checks(device, jobs, Journal(tmp_path / "j"), lambda name, wrong: recorded.append((name, wrong)))
    assert recorded == [("first", ""), ("second", "RuntimeError: unspecified launch failure")]
    assert Journal(tmp_path / "j").finished == {"first", "second"}
