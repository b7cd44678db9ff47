"""What the emulators raise: a fault that they found in a kernel, or a tool that they need and do not find."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emulator.ptx.parser import Instruction


class EmulationError(RuntimeError):
    """A kernel did something that would fault on a GPU, or whose result a GPU does not guarantee."""


class MissingToolError(RuntimeError):
    """A compiler, a header or a disassembler is not installed here; the message says what to install."""


class PTXError(EmulationError):
    """A fault of the executed PTX; the message names the instruction and its line."""

    def __init__(self, problem: str, instruction: Instruction) -> None:
        super().__init__(f"{problem}: {instruction.text!r} at {instruction.place}")
