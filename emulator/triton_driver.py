"""A Triton driver that has no GPU: ``kernel[grid](cpu_tensor)`` compiles for an NVIDIA architecture and runs in ptx/.

    with emulated(80) as launches:
        kernel[(4,)](x, y, n, BLOCK=128)      # Triton's real PTX for sm_80, executed on CPU tensors
    print(launches[-1].report)

Autotuning runs every configuration once and prefers the first: emulated time says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.compiler.compiler import CompiledKernel

from emulator.ptx import TrafficReport, launch
from emulator.ptx.launch import Argument

SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10}
MULTIPROCESSORS = 4  # few, so that persistent kernels have several rounds at small sizes


@dataclass
class Launch:
    """One launch that the driver executed."""

    name: str
    grid: tuple[int, int, int]
    threads: int
    shared_bytes: int
    ptx: str
    report: TrafficReport


@contextmanager
def emulated(arch: int = 80, seed: int = 0, constants: Collection[str] = ()) -> Iterator[list[Launch]]:
    """Triton kernels run in the emulator, also those wrapped in ``torch.library.triton_op``; yields what was launched.

    ``constants`` names the arguments that a kernel launched with ``launch_pdl=True`` may read before its gdc_wait.

    Raises ValueError for an architecture whose instructions the emulator lacks.
    """
    if arch not in SHARED_BYTES:
        raise ValueError(f"arch = {arch}; the emulator runs PTX for {sorted(SHARED_BYTES)}")
    driver = EmulatedDriver(arch, seed, constants)
    before = triton.runtime.driver._active
    original = CompiledKernel._init_handles

    def remember_ptx(kernel: CompiledKernel) -> None:
        driver.utils.loading = kernel.asm["ptx"] if kernel.metadata.target.backend == "cuda" else ""
        original(kernel)

    CompiledKernel._init_handles = remember_ptx
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.launches
    finally:
        CompiledKernel._init_handles = original
        triton.runtime.driver._active = before


class EmulatedDriver(DriverBase):
    """The device functions that Triton calls, for an emulated device."""

    def __init__(self, arch: int, seed: int, constants: Collection[str]) -> None:
        super().__init__()
        self.arch, self.seed, self.constants = arch, seed, constants
        self.launches: list[Launch] = []
        self.utils = _Utils(arch)
        self.launcher_cls = self._launcher

    def _launcher(self, source: Any, metadata: Any) -> Callable[..., None]:
        return _Launcher(self, source, metadata)

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_current_device(self) -> int:
        # One device for each driver: kernels that Triton has cached for another architecture are not mixed up.
        return id(self)

    def set_current_device(self, device: int) -> None:
        pass

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_benchmarker(self) -> Callable[..., Sequence[float]]:
        def run_once(call: Callable[[], None], quantiles: Sequence[float] = (0.5,), **_: Any) -> list[float]:
            call()
            return [1.0] * len(quantiles)

        return run_once

    def get_empty_cache_for_benchmark(self) -> torch.Tensor:
        return torch.empty(1)

    def clear_cache(self, cache: torch.Tensor) -> None:
        pass


class _Utils:
    """Loading a binary remembers the PTX that it was made from."""

    def __init__(self, arch: int) -> None:
        self.arch = arch
        self.loading = ""

    def get_device_properties(self, device: int) -> dict[str, int]:
        properties = dict.fromkeys(("sm_clock_rate", "mem_clock_rate", "mem_bus_width"), 1)
        shared = SHARED_BYTES[self.arch]
        properties |= {"max_shared_mem": shared, "multiprocessor_count": MULTIPROCESSORS}
        return properties | {"max_num_regs": 65536, "warpSize": 32}

    def load_binary(
        self, name: str, binary: bytes, shared: int, device: int
    ) -> tuple[None, tuple[str, str], int, int, int]:
        return None, (self.loading, name), 0, 0, 1024


class _Launcher:
    """Called with the arguments of the kernel; runs them through the PTX emulator."""

    def __init__(self, driver: EmulatedDriver, source: Any, metadata: Any) -> None:
        self.driver, self.metadata = driver, metadata
        self.kinds = list(source.signature.values())
        self.names = [name for name, kind in source.signature.items() if kind != "constexpr"]

    def __call__(
        self, x: int, y: int, z: int, cuda_stream: int, function: tuple[str, str], packed: Any, launch_metadata: Any,
        enter: Any, leave: Any, *arguments: Any
    ) -> None:  # fmt: skip
        if x * y * z == 0:
            return
        ptx, name = function
        values = [value for kind, value in zip(self.kinds, arguments, strict=True) if kind != "constexpr"]
        scratch = self._scratch(x * y * z)
        threads = self.metadata.num_warps * 32
        report = launch(
            ptx, name, (x, y, z), (threads, 1, 1), [*map(_argument, values), scratch],
            dynamic_bytes=self.metadata.shared, seed=self.driver.seed, constants=self._constants(name),
        )  # fmt: skip
        self.driver.launches.append(Launch(name, (x, y, z), threads, self.metadata.shared, ptx, report))

    def _constants(self, kernel: str) -> list[str] | None:
        """By the names that Triton gives parameters; None unless the launch is a programmatic one."""
        if not self.metadata.launch_pdl:
            return None
        return [f"{kernel}_param_{i}" for i, name in enumerate(self.names) if name in self.driver.constants]

    def _scratch(self, blocks: int) -> torch.Tensor | None:
        """Global memory that the compiler wants for itself."""
        size = self.metadata.global_scratch_size
        return torch.empty(blocks * size, dtype=torch.uint8) if size else None


def _argument(value: Any) -> Argument:
    if value is None or isinstance(value, (int, float, torch.Tensor)):
        return value
    raise TypeError(f"a Triton kernel was given {type(value).__name__}; the emulator takes CPU tensors and numbers")
