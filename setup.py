"""Builds the libraries of incline_fast, each for every torch from TORCH_TARGET on; metadata is in pyproject.toml.

    incline_fast/_C.abi3.so      schemas of the ops, and the CPU's kernels
    incline_fast/_cuda.abi3.so   the GPU's kernels, where nvcc is on the PATH (or in CUDA_HOME/bin)

INCLINE_FAST_BUILD=0 installs pure Python instead; the ops then run their plain PyTorch reference.
INCLINE_FAST_CUDA=0 leaves the GPU's kernels out, =1 makes a missing nvcc an error.
INCLINE_FAST_CUDA_ARCHS="80 90 100" are the GPUs to compile for; the last one's PTX serves newer ones.
INCLINE_FAST_SPIN_LIMIT=4000000 makes a debug build, whose kernels trap after so many turns of a waiting loop.
"""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup

TORCH_TARGET = "0x020b000000000000"  # 2.11, the oldest torch whose stable ABI has all that csrc/ calls
# No contraction into FMA behind our back: where sums are rounded is part of the kernels' definition. `make` adds
# -Werror through CFLAGS: for a developer a warning is an error, for a newer compiler it is not.
CXX_FLAGS = ["-O3", "-g0", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]
NVCC_FLAGS = ["-O3", "-std=c++20", "--fmad=false", "-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra"]


def choice(name: str, default: str, allowed: dict[str, str]) -> str:
    value = os.environ.get(name, default)
    if value not in allowed:
        listed = ", ".join(f"{key} ({meaning})" for key, meaning in allowed.items())
        raise SystemExit(f'{name} is "{value}"; allowed: {listed}')
    return value


def find_nvcc() -> Path | None:
    wanted = choice("INCLINE_FAST_CUDA", "auto", {"auto": "if there is nvcc", "0": "CPU alone", "1": "require nvcc"})
    if wanted == "0":
        return None
    home = os.environ.get("CUDA_HOME")
    found = shutil.which("nvcc", path=f"{home}/bin" if home else None)
    if found is None and wanted == "1":
        raise SystemExit("INCLINE_FAST_CUDA=1, but there is no nvcc on the PATH or in CUDA_HOME/bin")
    if found is None:
        print("no nvcc was found: incline_fast is built without its CUDA kernels")
    return None if found is None else Path(found)


def toolkit(nvcc: Path) -> Path:
    """The folder with include/ and lib64/, asked of nvcc because what lies on the PATH may be a wrapper."""
    told = subprocess.run([nvcc, "--dryrun", "-x", "cu", "-E", "/dev/null"], capture_output=True, text=True, check=True)
    (top,) = (line.partition("TOP=")[2] for line in told.stderr.splitlines() if "TOP=" in line)
    return Path(top).resolve()


def compile_kernels(nvcc: Path, folder: Path) -> list[str]:
    """Object files of csrc/cuda/*.cu; up to date ones are kept."""
    archs = os.environ.get("INCLINE_FAST_CUDA_ARCHS", "80 90 100").split()
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    targets.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    spin_limit = os.environ.get("INCLINE_FAST_SPIN_LIMIT")
    targets += [f"-DINCLINE_FAST_SPIN_LIMIT={spin_limit}"] if spin_limit else []
    strict = ["--Werror=all-warnings"] if "-Werror" in os.environ.get("CFLAGS", "") else []
    ours = [path for path in Path("csrc").rglob("*.h") if path.parts[1] not in ("bindings", "cpu")]
    headers = max(path.stat().st_mtime for path in ours)
    folder.mkdir(parents=True, exist_ok=True)

    def make(source: Path) -> str:
        target = folder / f"{source.stem}-{'-'.join(archs)}{'-debug' if spin_limit else ''}.o"
        newest = max(headers, source.stat().st_mtime)
        if not target.exists() or target.stat().st_mtime < newest:
            subprocess.run([nvcc, *NVCC_FLAGS, *strict, *targets, "-c", source, "-o", target], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(make, sorted(Path("csrc/cuda").rglob("*.cu"))))


def extension_arguments() -> dict:
    if choice("INCLINE_FAST_BUILD", "1", {"1": "build the extension", "0": "pure Python"}) == "0":
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                for extension in self.extensions:
                    if extension.name == "incline_fast._cuda":
                        extension.extra_objects = compile_kernels(nvcc, Path(self.build_temp) / "cuda")
                super().build_extensions()
            except Exception as error:
                raise SystemExit(
                    f"The C++ extension was not built ({error}). The compiler's own messages are above; g++ 11 or "
                    "newer is needed. INCLINE_FAST_BUILD=0 installs pure Python, which runs the same ops more slowly."
                ) from error

    def extension(name: str, sources: list[Path], system: list[Path], **options: list[str]) -> CppExtension:
        # torch's headers are not ours to warn about.
        system = [*system, *map(Path, include_paths())]
        return CppExtension(
            name,
            sources=sorted(map(str, sources)),
            depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
            extra_compile_args={"cxx": CXX_FLAGS + [f"-isystem{path}" for path in system]},
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
            py_limited_api=True,
            **options,
        )

    def bindings(device: str) -> list[Path]:
        return [path for name in ("*_op.cpp", f"*{device}*.cpp") for path in Path("csrc/bindings").glob(name)]

    extensions = [extension("incline_fast._C", [*bindings("cpu"), *Path("csrc/cpu").glob("*.cpp")], [])]
    nvcc = find_nvcc()
    if nvcc is not None:
        home = toolkit(nvcc)
        link = {"libraries": ["cudart"], "library_dirs": [str(home / "lib64")]}
        extensions.append(extension("incline_fast._cuda", bindings("cuda"), [home / "include"], **link))
    return {
        "ext_modules": extensions,
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(**extension_arguments())
