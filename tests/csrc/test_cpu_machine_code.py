"""The machine code of the tiles that large products are made of: what the compiler made of csrc/cpu/panel_gemm.h.

A tile has about as many sums as there are vector registers. One register too many and a sum goes to the stack and back
in every step: the numbers stay right, and a product takes a fifth longer.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

import incline_fast

LIBRARY = Path(incline_fast.__file__).parent / "_C.abi3.so"

pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason="installed without the compiled extension"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 instructions"),
    pytest.mark.skipif(shutil.which("objdump") is None, reason="objdump is not installed (Debian: binutils)"),
]

TILE = re.compile(r"^[0-9a-f]+ <void .*::tile<\S*?(\w+), (\w+), (\d), (\d)>\(", re.MULTILINE)
STACK = re.compile(r"\(%r[sb]p[,)]")
VECTOR = re.compile(r"%[xyz]mm")


@cache
def tiles() -> dict[tuple[str, str, int, int], list[list[str]]]:
    """Instructions from the first to the last fused multiply-add, by (vector trait, weights, panels, tokens).

    A tile may be there several times: once per file that includes it, and specialised for a length.
    """
    listing = subprocess.run(
        ["objdump", "--disassemble", "--demangle", "--no-show-raw-insn", LIBRARY],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found: dict[tuple[str, str, int, int], list[list[str]]] = {}
    for function in listing.split("\n\n"):
        heading = TILE.search(function)
        if heading is None:
            continue
        trait, weights, panels, tokens = heading.groups()
        lines = [line.rpartition("\t")[2] for line in function.splitlines()]
        multiplying = [i for i, line in enumerate(lines) if line.startswith("vfmadd")]
        if multiplying:
            key = (trait, weights, int(panels), int(tokens))
            found.setdefault(key, []).append(lines[multiplying[0] : multiplying[-1] + 1])
    return found


@pytest.mark.parametrize(
    ("trait", "weights", "tokens", "panels", "registers"),
    [
        ("Avx2Float", "float", 6, 1, 2),
        ("Avx2Double", "double", 3, 1, 4),
        ("Avx512Float", "float", 8, 3, 1),
        ("Avx512Double", "double", 8, 1, 2),
        ("AmxFloat", "float", 8, 3, 1),
    ],
)
def test_largest_tile_is_found_and_multiplies_once_per_sum(
    trait: str, weights: str, tokens: int, panels: int, registers: int
) -> None:
    for body in tiles()[trait, weights, panels, tokens]:
        assert sum(line.startswith("vfmadd") for line in body) == tokens * panels * registers


def test_no_tile_without_conversion_keeps_a_sum_on_the_stack() -> None:
    spilled = {
        tile: [line for body in bodies for line in body if VECTOR.search(line) and STACK.search(line)]
        for tile, bodies in tiles().items()
        if tile[1] in ("float", "double") and tile[0].startswith(("Avx", "Amx"))
    }
    assert len(spilled) > 20
    assert {tile: lines for tile, lines in spilled.items() if lines} == {}
