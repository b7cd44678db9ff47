"""The CUDA library as setup.py built it: complete, and loadable beside a torch that has no CUDA."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import incline_fast

LIBRARY = Path(incline_fast.__file__).parent / "_cuda.abi3.so"
LOAD = """
import torch, incline_fast
torch.ops.load_library({path!r})
names = ("affine_rms_norm", "affine_layer_norm", "affine_rms_norm_", "affine_layer_norm_")
names += ("cholesky_block", "cholesky_block_", "triangular_inverse")
print(all(torch._C._dispatch_has_kernel_for_dispatch_key(f"incline_fast::{{name}}", "CUDA") for name in names))
print(torch.ops.incline_fast.set_batch_invariant(True))
print(torch.ops.incline_fast.set_programmatic_launch(True))
"""


@pytest.mark.skipif(not LIBRARY.exists() and shutil.which("nvcc") is None, reason="no nvcc: the library is not built")
def test_the_library_registers_every_op() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(path=str(LIBRARY))], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True", "None", "None"], done.stderr
