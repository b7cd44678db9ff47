"""Executes compiled PTX on the CPU with numpy, judges it, and counts what it moves."""

from emulator.errors import PTXError
from emulator.ptx.launch import launch
from emulator.ptx.traffic import TrafficReport

__all__ = ["PTXError", "TrafficReport", "launch"]
