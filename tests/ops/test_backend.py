"""Which implementation runs, what it says about itself, and the instruction sets of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from incline_fast import ops
from incline_fast.ops import _dispatch
from incline_fast.ops._extension import EXTENSION

compiled = pytest.mark.skipif(EXTENSION is None, reason="pure-Python installation")
HERE = Path(__file__).parent


def run_with_isa(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "INCLINE_FAST_CPU_ISA": isa}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def available() -> list[str]:
    """The instruction sets that this machine can run, from the op's own message."""
    if EXTENSION is None:
        return []
    answer = run_with_isa("none", "-c", "from incline_fast import ops; ops.explain()")
    assert "ValueError" in answer.stderr, answer.stderr
    return answer.stderr.strip().rpartition("allow: ")[2].split(", ")


@compiled
def test_explain_names_the_compiled_op() -> None:
    assert "cpu (compiled, " in ops.explain()
    assert str(EXTENSION) in ops.explain("cpu")
    assert "packed anew in every call" in ops.explain()


def test_explain_names_the_reference_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops.explain("reference") == 'reference (plain PyTorch): backend="reference" was asked for'
    monkeypatch.setattr(_dispatch, "EXTENSION", None)
    assert ops.explain() == "reference (plain PyTorch): no compiled extension is installed"
    with pytest.raises(ValueError, match='backend="cpu" needs the compiled extension'):
        ops.explain("cpu")


def test_explain_refuses_what_the_op_refuses() -> None:
    with pytest.raises(ValueError, match='x is on device "meta"'):
        ops.explain(device="meta")
    with pytest.raises(ValueError, match='backend is "gpu"; allowed: auto, cpu, cuda, triton, reference'):
        ops.explain("gpu")


@compiled
def test_unknown_instruction_set_is_refused_with_the_choices() -> None:
    answer = run_with_isa("none", "-c", "from incline_fast import ops; ops.explain()")
    assert answer.returncode != 0
    assert 'INCLINE_FAST_CPU_ISA is "none"; this machine and build allow: ' in answer.stderr
    assert answer.stderr.strip().endswith("scalar")


@compiled
@pytest.mark.parametrize("isa", available())
def test_every_instruction_set_passes_the_same_tests(isa: str) -> None:
    """The default one runs in this process; the others run the same files in their own."""
    if isa == torch.ops.incline_fast.cpu_isa():
        assert isa in ops.explain()
        return
    files = [str(HERE / name) for name in ("test_numerics.py", "test_layouts.py", "test_batch_invariance.py")]
    answer = run_with_isa(isa, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not reference", *files)
    assert answer.returncode == 0, answer.stdout[-3000:]
