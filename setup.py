"""Builds incline_fast/_C.abi3.so, one library for every torch from TORCH_TARGET on; metadata is in pyproject.toml.

INCLINE_FAST_BUILD=0 installs pure Python instead; the ops then run their plain PyTorch reference.
"""

import os
from pathlib import Path

from setuptools import setup

TORCH_TARGET = "0x020b000000000000"  # 2.11, the oldest torch whose stable ABI has all that csrc/ calls


def extension_arguments() -> dict:
    choice = os.environ.get("INCLINE_FAST_BUILD", "1")
    if choice not in ("0", "1"):
        raise SystemExit(f'INCLINE_FAST_BUILD is "{choice}"; allowed: 1 (build the extension), 0 (pure Python)')
    if choice == "0":
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    class Build(BuildExtension):
        def build_extensions(self) -> None:
            try:
                super().build_extensions()
            except Exception as error:
                raise SystemExit(
                    f"The C++ extension was not built ({error}). The compiler's own messages are above; g++ 11 or "
                    "newer is needed. INCLINE_FAST_BUILD=0 installs pure Python, which runs the same ops more slowly."
                ) from error

    extension = CppExtension(
        "incline_fast._C",
        sources=sorted(str(path) for path in Path("csrc").rglob("*.cpp")),
        depends=sorted(str(path) for path in Path("csrc").rglob("*.h")),
        extra_compile_args={
            # No contraction into FMA behind our back: where sums are rounded is part of the kernels' definition.
            "cxx": ["-O3", "-g0", "-std=c++20", "-ffp-contract=off", "-fvisibility=hidden"]
            # `make` adds -Werror through CFLAGS: for a developer a warning is an error, for a newer compiler it is not.
            + ["-Wall", "-Wextra"]
            # torch's headers are not ours to warn about.
            + [f"-isystem{path}" for path in include_paths()],
        },
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(**extension_arguments())
