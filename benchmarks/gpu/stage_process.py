"""What every stage that uses the device begins and ends with: its arguments, its device, its exit status."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.device import Device, NoDeviceError, open_device
from benchmarks.gpu.plan import CUDA_DEVICE
from benchmarks.gpu.stages import NO_DEVICE, RESTART

__all__ = ["LostDeviceError", "add_arguments", "run_as_stage"]


class LostDeviceError(RuntimeError):
    """The device cannot be used by this process any more; a new process can."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of every stage."""
    parser.add_argument("--output", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--work", type=Path, required=True, help="folder of logs and journals")
    parser.add_argument("--device", default=CUDA_DEVICE, help="class of the device, as module:name")


def run_as_stage(
    arguments: argparse.Namespace,
    main: Callable[[argparse.Namespace, Device], int],
    prepare: Callable[[argparse.Namespace], None] = lambda arguments: None,
) -> int:
    """``prepare``, open the device, ``main``; returns the exit status.

    Args:
        arguments: with those of :func:`add_arguments`.
        main: the stage; returns its exit status.
        prepare: all that can be done, and can go wrong, without a device.
    """
    for folder in (arguments.output, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    prepare(arguments)
    try:
        device = open_device(arguments.device)
    except NoDeviceError as error:
        print(error, flush=True)
        return NO_DEVICE
    try:
        return main(arguments, device)
    except LostDeviceError:
        traceback.print_exc()
        return RESTART
