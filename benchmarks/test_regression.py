"""Guards against slower kernels; not part of `make test`, because times need an idle machine.

    make bench-regression

The timed part is pytest-benchmark's: --benchmark-save=NAME stores a run, --benchmark-compare=NAME
--benchmark-compare-fail=median:10% fails where a later one is slower. The counted part has no noise: the instructions
of a call under valgrind, against benchmarks/results/instructions.csv.
"""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch

from benchmarks import instructions
from incline_fast.bench import PROVIDERS, Data, Problem

FP32, BF16 = torch.float32, torch.bfloat16
PROBLEMS = [
    Problem(hidden_size=64, mode="cache"),
    *(Problem("rms", m, 2048, rank, t, t) for rank, t, m in itertools.product((None, 64), (FP32, BF16), (1, 8, 32))),
    Problem("rms", 1, 2048, None, BF16, torch.int8),
    Problem("layer", 8, 2048, None, BF16, BF16),
]


@pytest.mark.parametrize("provider", ["eager", "fused_in_place"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_time_of_a_call(benchmark, problem: Problem, provider: str) -> None:
    """Fifty calls that read one copy of the weights after the other."""
    benchmark.group = str(problem)
    with torch.no_grad():
        data = Data(problem)
        run = PROVIDERS[provider].make(data)
        copies = itertools.cycle(range(problem.copies))
        benchmark.pedantic(run, setup=lambda: ((data.x.clone(), next(copies)), {}), rounds=50, warmup_rounds=5)
    assert benchmark.stats.stats.rounds == 50


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
def test_instructions_of_a_call() -> None:
    """Counts repeat with one compiler; changes within the margin are ignored."""
    stored = instructions.read()
    made_with = {one.compiler for one in stored}
    if made_with != {instructions.compiler()}:
        pytest.skip(f"the stored counts are of {', '.join(made_with)}, this is {instructions.compiler()}")
    assert instructions.differences(instructions.count(), stored) == []
