"""The torch-free CPU kernels in a driver of their own: under sanitizers, and for AArch64 under an emulator.

Every kernel is compared with plain loops over odd shapes, dtypes, strides and threads; see tests/csrc/cpp/kernels.cpp.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

DRIVER = Path(__file__).parent / "cpp"
CXX = os.environ.get("CXX", "g++")
ARM = ("aarch64-linux-gnu-g++", "qemu-aarch64")

needs_make = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("make", CXX)), reason=f"make or {CXX} is not installed"
)
needs_arm = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ARM),
    reason=f"{' or '.join(ARM)} is not installed (Debian: g++-aarch64-linux-gnu, qemu-user)",
)


def build(folder: Path, compiler: str, flags: str) -> Path:
    command = ["make", "-s", "-j2", "-C", str(DRIVER), f"OUT={folder}", f"CXX={compiler}", f"FLAGS={flags}"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return folder / "kernels"


def run(isa: str, *command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "INCLINE_FAST_CPU_ISA": isa}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, check=False)


def allowed(*driver: str | Path) -> list[str]:
    """The instruction sets that can run here, from the driver's own message."""
    answer = run("none", *driver, "check")
    assert answer.returncode == 2, answer.stderr
    return answer.stderr.strip().rpartition("allow: ")[2].split(", ")


def check_every_isa(driver: Sequence[str | Path], best: int, others: int) -> list[str]:
    """One case in ``best`` of the best instruction set, one in ``others`` of each other one."""
    isas = allowed(*driver)
    for number, isa in enumerate(isas):
        answer = run(isa, *driver, "check", str(others if number else best))
        assert answer.returncode == 0, f"{isa}: {answer.stderr[-4000:]}"
        assert answer.stdout.startswith(f"{isa}: ")
        assert answer.stdout.endswith(" cases, 0 wrong\n")
    return isas


@needs_make
def test_kernels_are_right_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    driver = build(tmp_path, CXX, "-O1 -g1 -fsanitize=address,undefined -fno-sanitize-recover=all")
    assert check_every_isa([driver], best=1, others=4)[-1] == "scalar"
    refused = run("scalar", driver, "run", "rms", "1", "16", "0", "float8", "float32")
    assert (refused.returncode, refused.stderr) == (2, "kernels: unknown dtype float8\n")


@needs_make
@needs_arm
def test_neon_kernels_are_right_under_qemu(tmp_path: Path) -> None:
    driver = build(tmp_path, ARM[0], "-O2 -static")
    assert check_every_isa([ARM[1], driver], best=5, others=5) == ["neon", "scalar"]
