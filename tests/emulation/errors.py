"""What the emulators raise when they find a fault in a kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulation.ptx.parser import Instruction


class EmulationError(RuntimeError):
    """A kernel did what a GPU would not have survived, or would not have promised to do right."""


class PTXError(EmulationError):
    """A fault of the executed PTX; the message names the instruction and its line."""

    def __init__(self, problem: str, instruction: Instruction) -> None:
        super().__init__(f"{problem}: {instruction.text!r} at {instruction.place}")
