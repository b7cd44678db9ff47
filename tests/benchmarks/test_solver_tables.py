"""The tables of docs/benchmarks/solver.md."""

from __future__ import annotations

from benchmarks.report.solver_tables import _work

SHAPE = {"work": "ridge, made up", "sites": "2", "n": "10", "d": "4", "held_out_error": "1e-15", "rounds": "3"}


def timed(provider: str, ms: float, ratio: float, threads: int) -> dict[str, str]:
    return {
        **SHAPE,
        "provider": provider,
        "ms_p50": str(ms),
        "ratio_to_first": str(ratio),
        "threads": str(threads),
    }


def test_runs_with_other_threads_are_rows_of_their_own_and_losses_name_them():
    rows = [timed("incline_fast", 10, 1.0, 1), timed("torch", 20, 2.0, 1)]
    rows += [timed("incline_fast", 8, 1.0, 2), timed("torch", 6, 0.75, 2)]
    page = _work(rows, "ridge", "Ridge")
    assert "| 2 x 10 x 4 | 1 | 10 ms | 2.00x |" in page
    assert "| 2 x 10 x 4 | 2 | 8 ms | 0.75x |" in page
    assert "Slower than torch's best: 2 x 10 x 4, threads: 2 (0.75x)." in page
