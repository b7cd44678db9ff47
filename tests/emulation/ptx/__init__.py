"""Executes compiled PTX on the CPU with numpy, judges it, and counts what it moves."""

from emulation.errors import PTXError
from emulation.ptx.launch import launch
from emulation.ptx.traffic import TrafficReport

__all__ = ["PTXError", "TrafficReport", "launch"]
