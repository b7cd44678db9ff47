"""What a GPU machine with the oldest supported torch goes through before it touches its GPU, in the twin of build.py.

``make twin`` builds the twin and runs all of this; CI does the same. docs/building.md lists it. Not covered is what
only a GPU can do: NVIDIA's libraries are stand-ins there, kernels run in the emulator or not at all.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from twin.build import PYTHON, ROOT, TREE, environment

OPS = ("tests/ops/test_numerics.py", "tests/ops/test_cholesky_block.py", "tests/ops/test_errors.py")
VERSIONS = "import numpy, platform, torch, transformers, triton\n" + "\n".join(
    f"print({name})"
    for name in ("platform.python_version()", "torch.__version__", "triton.__version__", "numpy.__version__")
)
LOADED = """
import incline_fast
from incline_fast.ops import _extension
print(_extension.EXTENSION, _extension.CUDA_EXTENSION)
print(incline_fast.explain())
print(incline_fast.explain(device="cuda"))
"""
COMPILED = """
from emulator.triton_code import KINDS, decode_variants, variants
from triton.backends.compiler import GPUTarget
chosen = [next(decode_variants(kind, low_rank)) for low_rank in (False, True) for kind in KINDS]
for variant in [*chosen, *(variant for variant in variants() if not variant.name.startswith("decode"))]:
    assert variant.compile(GPUTarget("cuda", 90, 32)).asm["cubin"][:4] == b"\\x7fELF"
    print(variant.name)
"""

twin = pytest.mark.twin


def run(*command: str, python: Path = PYTHON, folder: Path = TREE) -> str:
    """Standard output of Python in a checkout; the test fails with all that was said if the command does."""
    variables = environment() | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, *command], cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def passed(*arguments: str, **where: Path) -> int:
    """Tests that passed in a run of pytest in which none failed."""
    told = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, **where)
    return int(re.findall(r"(\d+) passed", told)[-1])


@twin
def test_versions() -> None:
    """Nor is there git, or the one dependency that such machines lack."""
    python, torch, triton, numpy = run("-c", VERSIONS).split()
    assert python.startswith("3.12.")
    assert (torch, triton) == ("2.11.0+cu130", "3.6.0")
    assert numpy.startswith("2.5.")
    assert run("-c", "import shutil; print(shutil.which('git'))").split() == ["None"]
    assert run("-c", "import importlib.util; print(importlib.util.find_spec('polib'))").split() == ["None"]


@twin
def test_both_libraries_load_and_explain() -> None:
    libraries, cpu, cuda = run("-c", LOADED).splitlines()
    assert libraries.split() == [str(TREE / "incline_fast" / name) for name in ("_C.abi3.so", "_cuda.abi3.so")]
    assert cpu.startswith("cpu (compiled, ")
    assert cuda.startswith("cuda: ")


@twin
@pytest.mark.parametrize(
    ("python", "folder"),
    [(PYTHON, TREE), (Path(sys.executable), TREE), (PYTHON, ROOT)],
    ids=["built for the oldest, under it", "built for the oldest, under ours", "built for ours, under the oldest"],
)
def test_ops(python: Path, folder: Path) -> None:
    """A library serves the torch that it was compiled against and the other one."""
    assert passed(*OPS, "-k", "not every_instruction_set", python=python, folder=folder) > 250


@twin
def test_triton_compiles() -> None:
    """Every kernel, ``decode`` for every combination of types, down to machine code for sm_90."""
    assert len(run("-c", COMPILED).splitlines()) == 20


@twin
def test_triton_runs_emulated() -> None:
    assert passed("tests/ops/triton_kernels/test_triton_numerics.py") > 20


@twin
def test_the_gpu_run_comes_as_far_as_the_device(tmp_path: Path) -> None:
    run("-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path / "output"), "--work", str(tmp_path / "work"))


def test_the_page_says_what_is_run_and_whether_ci_does() -> None:
    """Read from the texts: what CI leaves out must be said to be left out."""
    in_ci = "make twin" in (ROOT / ".ci" / "run").read_text().splitlines()
    assert in_ci != ("It is not part of `.ci/run`" in (ROOT / "docs" / "building.md").read_text())
    recipe = (ROOT / "Makefile").read_text().partition("\ntwin:")[2].partition("\n\n")[0]
    assert "tests/twin/build.py" in recipe
    assert recipe.rstrip().endswith("-m pytest -n auto -m twin tests/twin")
    steps = [name for name, test in globals().items() if twin.mark in getattr(test, "pytestmark", ())]
    page = (ROOT / "docs" / "building.md").read_text()
    assert re.findall(r"^\| `(test_\w+)` \|", page, re.MULTILINE) == steps
