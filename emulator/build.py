"""Compiles CUDA sources for the emulators. Results are kept in build/emulator, named by what went into them.

library = fiber_library(sources, sanitizer="races")     # g++: kernels as fibers, a library for ctypes
text = ptx(source, "sm_80")                             # nvcc: the PTX that the PTX emulator runs
path = cubin(source, "sm_90")                           # nvcc: machine code for the gate
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

from emulator.errors import EmulationError, MissingToolError

ROOT = Path(__file__).parents[1]
CACHE = ROOT / "build" / "emulator"
FIBER = Path(__file__).parent / "fiber"
CSRC = ROOT / "csrc"

Sanitizer = Literal["none", "races", "address"]

# The compiler must not contract into FMA, as in the CPU kernels: what is to be fused is written as fmaf.
# -O1 compiles in half the time of -O2, which is most of what a check takes.
GXX = ["g++", "-std=c++20", "-O1", "-g1", "-fPIC", "-pthread", "-ffp-contract=off", "-Wall", "-Wextra"]
GXX += [
    f"-ffile-prefix-map={ROOT}/=",
    "-Wno-unknown-pragmas",
    "-Wno-unused-parameter",
    "-fno-gnu-unique",
    "-DINCLINE_FAST_EMULATED",
]
NVCC = ["nvcc", "-std=c++20", "-O3", "--fmad=false", "-lineinfo", "-Xcompiler=-fPIC"]

# Answered by fiber/undefined_hooks.cpp.
UNDEFINED = ["-fsanitize=alignment,bounds", "-fno-sanitize-recover=all"]
SANITIZER_FLAGS: Mapping[Sanitizer, list[str]] = {
    "none": UNDEFINED,
    "races": [
        *("-fsanitize=thread", "-DCUDA_ON_CPU_RACES", *UNDEFINED),
        *("--param", "tsan-distinguish-volatile=1", "--param", "tsan-instrument-func-entry-exit=0"),
    ],
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"],
}


class FiberLibrary:
    """Kernels as fibers. Functions of the library are called by name; a fault in a kernel raises EmulationError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        self._library.cuda_on_cpu_schedule.argtypes = [ctypes.c_uint64, ctypes.c_uint]
        self._library.cuda_on_cpu_take_error.restype = ctypes.c_char_p

    def schedule(self, seed: int = 0, resident: int = 4) -> None:
        """Order of blocks and threads for the launches to come; seed 0 is the natural one.

        ``resident`` blocks are in flight at once. With 1, a kernel whose blocks wait for later ones makes no progress.
        """
        if resident < 1:
            raise ValueError(f"resident = {resident}: at least one block must be in flight")
        self._library.cuda_on_cpu_schedule(seed, resident)

    def function(self, name: str, *types: Any, restype: Any = None) -> Callable[..., Any]:
        """An ``extern "C"`` function that launches kernels, with ctypes argument types."""
        raw = self._library[name]
        raw.argtypes, raw.restype = types, restype

        def call(*arguments: Any) -> Any:
            result = raw(*arguments)
            self.check()
            return result

        return call

    def check(self) -> None:
        """Raise EmulationError if a launch failed since the last call."""
        message = self._library.cuda_on_cpu_take_error()
        if message is not None:
            raise EmulationError(re.sub(r"\[\+(0x[0-9a-f]+)\]", self._source_line, message.decode()))

    def _source_line(self, match: re.Match[str]) -> str:
        command = ["addr2line", "-e", str(self.path), match.group(1)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]


def load_fibers(sources: Path | Sequence[Path], **options: Any) -> FiberLibrary:
    """``fiber_library`` compiled and loaded. An AddressSanitizer build loads only under ``sanitized_environment``."""
    return FiberLibrary(fiber_library(sources, **options))


def fiber_library(
    sources: Path | Sequence[Path], *, sanitizer: Sanitizer = "none", include: Sequence[Path] = (CSRC,)
) -> Path:
    """Compile .cu (and .cpp) files with g++ into a shared library that runs their kernels as fibers.

    ``sanitizer``: "none"; "races" finds data races and misaligned accesses; "address" is AddressSanitizer and
    UndefinedBehaviorSanitizer, for a process started with ``sanitized_environment``.
    """
    sources = [sources] if isinstance(sources, Path) else list(sources)
    flags = [*GXX, *SANITIZER_FLAGS[sanitizer], f"-I{FIBER}", *(f"-I{folder}" for folder in include)]
    flags += [f"-isystem{cuda_headers()}"]
    objects = [_object(source, flags, include) for source in sources]
    objects += [_object(source, _runtime_flags(flags, sanitizer), [FIBER]) for source in sorted(FIBER.glob("*.cpp"))]

    def link(target: Path) -> None:
        sanitize = SANITIZER_FLAGS[sanitizer] if sanitizer == "address" else []
        _run(["g++", "-shared", "-pthread", "-Wl,-Bsymbolic", *sanitize, *map(str, objects), "-o", str(target), "-ldl"])

    return _cached("library.so", [str(path) for path in objects], link)


def ptx(source: Path, arch: str, *, include: Sequence[Path] = (CSRC,)) -> str:
    """The PTX that nvcc emits; raises MissingToolError where there is no nvcc."""
    return _nvcc(source, arch, ["-ptx"], "kernel.ptx", include).read_text()


def cubin(source: Path, arch: str, *, include: Sequence[Path] = (CSRC,)) -> Path:
    """The machine code that nvcc and ptxas emit; raises MissingToolError where there is no nvcc."""
    return _nvcc(source, arch, ["-cubin"], "kernel.cubin", include)


def cuda_headers() -> Path:
    """CUDA's own headers: those beside nvcc, otherwise those that come with Triton's wheel."""
    nvcc = shutil.which("nvcc")
    candidates = [Path(os.environ["CUDA_HOME"]) / "include"] if "CUDA_HOME" in os.environ else []
    if nvcc is not None:
        candidates.append(_nvcc_root(nvcc) / "include")
    candidates.append(_triton_backend() / "include")
    for folder in candidates:
        if (folder / "cuda_bf16.h").exists():
            return folder
    raise MissingToolError("no CUDA headers: install nvcc or triton, or name a toolkit in CUDA_HOME")


def nvidia_tool(name: str) -> Path:
    """ptxas, cuobjdump or nvdisasm from Triton's wheel, otherwise from the PATH; raises MissingToolError without."""
    found = _triton_backend() / "bin" / name
    if found.exists():
        return found
    on_path = shutil.which(name)
    if on_path is None:
        raise MissingToolError(f"no {name}: install triton or a CUDA toolkit")
    return Path(on_path)


def sanitized_environment() -> dict[str, str]:
    """Environment of a Python that loads an AddressSanitizer build, whose runtime must come first; it imports from
    where this one does."""
    names = ["libasan.so", "libubsan.so"]
    found = [_output(["g++", f"-print-file-name={name}"]).strip() for name in names]
    options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0"
    preloaded = {"LD_PRELOAD": " ".join(found), "ASAN_OPTIONS": options, "UBSAN_OPTIONS": "print_stacktrace=1"}
    return {**os.environ, **preloaded, "PYTHONPATH": os.pathsep.join(sys.path)}


def _object(source: Path, flags: Sequence[str], include: Sequence[Path]) -> Path:
    inputs = [*flags, compiler_version("g++"), _contents(dependencies(source, [*include, FIBER]))]
    return _cached("object.o", inputs, lambda target: _run([*flags, "-c", "-x", "c++", str(source), "-o", str(target)]))


def _runtime_flags(flags: Sequence[str], sanitizer: Sanitizer) -> list[str]:
    """The scheduler and the race detector must not be instrumented with calls to themselves."""
    own = (
        {flag for flag in SANITIZER_FLAGS[sanitizer] if flag.startswith("-fsanitize")} if sanitizer != "address" else {}
    )
    return [flag for flag in flags if flag not in own]


def _nvcc(source: Path, arch: str, mode: list[str], name: str, include: Sequence[Path]) -> Path:
    if shutil.which("nvcc") is None:
        raise MissingToolError("nvcc is not installed: the PTX and machine code of csrc/cuda cannot be made here")
    command = [*NVCC, *mode, f"-arch={arch}", *(f"-I{folder}" for folder in include)]
    inputs = [*command, compiler_version("nvcc"), _contents(dependencies(source, include))]
    return _cached(name, inputs, lambda target: _run([*command, str(source), "-o", str(target)]))


def dependencies(source: Path, include: Sequence[Path]) -> list[Path]:
    """The source and the files of ours that it includes, directly or not."""
    found, to_read = {source.resolve()}, [source.resolve()]
    while to_read:
        path = to_read.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            candidates = [(folder / name).resolve() for folder in (path.parent, *include) if (folder / name).exists()]
            new = set(candidates[:1]) - found
            found |= new
            to_read += new
    return sorted(found)


def _contents(paths: Sequence[Path]) -> str:
    return "\n".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in paths)


def _cached(name: str, inputs: Sequence[str], make: Callable[[Path], None]) -> Path:
    """build/emulator/<hash of inputs>/<name>, made under a lock so that parallel tests compile it once."""
    # Where the checkout lies changes nothing: __FILE__ and debug information are relative to it.
    key = "\n".join(inputs).replace(str(ROOT), "")
    folder = CACHE / hashlib.sha256(key.encode()).hexdigest()[:24]
    target = folder / name
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            if not target.exists():
                partial = folder / f"partial-{name}"
                make(partial)
                partial.rename(target)
    return target


@contextmanager
def _locked(path: Path) -> Any:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@cache
def compiler_version(compiler: str) -> str:
    """What the compiler says of itself."""
    return _output([compiler, "--version"])


def _nvcc_root(nvcc: str) -> Path:
    """The toolkit that nvcc belongs to, asked of nvcc because what lies on the PATH may be a wrapper."""
    shown = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-E", "/dev/null"], capture_output=True, text=True, check=True
    )
    top = re.search(r"^#\$ TOP=(.+)$", shown.stderr, re.MULTILINE)
    return Path(top.group(1)) if top else Path(nvcc).resolve().parents[1]


def _triton_backend() -> Path:
    """Folder of Triton's NVIDIA backend; it need not exist."""
    from importlib.util import find_spec

    spec = find_spec("triton")
    root = Path(spec.origin).parent if spec is not None and spec.origin is not None else Path("triton-is-not-installed")
    return root / "backends" / "nvidia"
