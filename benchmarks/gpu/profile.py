"""A few launches of each kernel for ncu: python -m benchmarks.gpu.profile --output FOLDER --work FOLDER.

Each launch reads another copy of the map, so that the bytes that ncu counts came from memory.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.gpu.data import DeviceData
from benchmarks.gpu.device import Device
from benchmarks.gpu.providers import GPU_PROVIDERS
from benchmarks.gpu.stage_process import add_arguments, run_as_stage
from incline_fast.bench.problems import Problem

__all__ = ["PROBLEMS"]

LAUNCHES = 3
PROBLEMS = tuple(
    Problem("rms", m, 4096, rank, torch.bfloat16, torch.bfloat16)
    for rank, m in ((None, 1), (None, 16), (500, 1), (None, 64), (500, 16))
)


def main(arguments: argparse.Namespace, device: Device) -> int:
    """Returns the exit status."""
    for problem in PROBLEMS:
        data = DeviceData(problem, device.torch_device)
        run = GPU_PROVIDERS["cuda"].make(data)
        for copy in range(LAUNCHES):
            run(data.x.clone(), copy)
        device.synchronize()
        print(f"launched {problem}", flush=True)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    raise SystemExit(run_as_stage(parser.parse_args(), main))
