"""PTX text to instructions, each with its line in the PTX and, where the PTX names it, in the source."""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from emulator.ptx.scalars import BITS


@dataclass
class Variable:
    """A parameter, or an array in shared, local, global or constant memory."""

    name: str
    kind: str
    count: int
    align: int
    values: list[int] = field(default_factory=list)
    offset: int = 0

    @property
    def bytes(self) -> int:
        return BITS[self.kind] // 8 * self.count


@dataclass
class Instruction:
    """One instruction; ``parts`` are the pieces of its opcode, as in ("ld", "global", "v4", "b32")."""

    parts: tuple[str, ...]
    operands: list[str]
    guard: str | None
    negated: bool
    text: str
    place: str

    @property
    def name(self) -> str:
        return self.parts[0]


@dataclass
class Kernel:
    """An entry of a PTX module."""

    name: str
    parameters: list[Variable]
    shared: list[Variable] = field(default_factory=list)
    local: list[Variable] = field(default_factory=list)
    module: list[Variable] = field(default_factory=list)
    registers: dict[str, int] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{;]*)\{", re.DOTALL)
_VARIABLE = re.compile(
    r"(?:\.(?:extern|visible|weak|common)\s+)*\.(shared|global|const|local)\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+"
    r"([\w$]+)\s*(?:\[(\d*)\])?\s*(?:=\s*(.*))?$",
    re.DOTALL,
)


@lru_cache(maxsize=256)
def parse(source: str, name: str) -> Kernel:
    """The entry called ``name``, or the only one whose name contains it."""
    text = _without_comments(source)
    entries = list(_ENTRY.finditer(text))
    exact = [entry for entry in entries if entry.group(1) == name]
    found = exact or [entry for entry in entries if name in entry.group(1)]
    if len(found) != 1:
        names = ", ".join(entry.group(1) for entry in entries)
        raise ValueError(f"{name!r} names {len(found)} entries of the module; it has: {names}")
    entry = found[0]
    kernel = Kernel(entry.group(1), _parameters(entry.group(2)))
    start = entry.end()
    end = _matching_brace(text, start)
    for statement in _module_statements(text):
        _declare(kernel, statement)
    _Body(kernel, text, _files(text)).read(start, end)
    return kernel


def split_operands(text: str) -> list[str]:
    """At the commas that are outside brackets."""
    out, depth, current = [], 0, ""
    for char in text:
        depth += (char in "[{(") - (char in "]})")
        if char == "," and depth == 0:
            out.append(current.strip())
            current = ""
        else:
            current += char
    return [*out, current.strip()] if current.strip() else out


class _Body:
    """Reads the statements between an entry's braces; names declared in an inner scope are its own."""

    def __init__(self, kernel: Kernel, text: str, files: dict[str, str]) -> None:
        self.kernel, self.text, self.files = kernel, text, files
        self.newlines = [match.start() for match in re.finditer("\n", text)]
        self.scopes: list[dict[str, str]] = [{}]
        self.scope_count = 0
        self.location = ""

    def read(self, start: int, end: int) -> None:
        current, begin = "", start
        position = start
        while position < end:
            char = self.text[position]
            if not current.strip():
                current, begin = "", position
                if directive := re.compile(r"\s*\.(loc|file|section)\b([^\n]*)\n").match(self.text, position):
                    self._locate(directive.group(1), directive.group(2))
                    position = directive.end()
                    continue
                if char in "{}":
                    self._scope(char)
                    position += 1
                    continue
            position += 1
            if char == ";":
                self._statement(" ".join(current.split()), begin)
                current = ""
                continue
            current += char
            if char == ":" and self.text[position] != ":" and re.fullmatch(r"\s*[\w$]+:", current):
                self.kernel.labels[self._label(current.strip()[:-1])] = len(self.kernel.instructions)
                current = ""

    def _locate(self, directive: str, rest: str) -> None:
        if directive == "loc":
            places = [rest.split()[:2]]
            if inlined := re.search(r"inlined_at\s+(\d+)\s+(\d+)", rest):
                places.append(list(inlined.groups()))
            self.location = ", inlined at ".join(f"{self.files.get(file, 'source')}:{line}" for file, line in places)

    def _scope(self, brace: str) -> None:
        if brace == "{":
            self.scopes.append({})
            self.scope_count += 1
        else:
            self.scopes.pop()

    def _label(self, name: str) -> str:
        if len(self.scopes) == 1:
            return name
        return self.scopes[-1].setdefault(name, f"{name}@{self.scope_count}")

    def _statement(self, text: str, position: int) -> None:
        if not text:
            return
        if text.startswith(".reg"):
            self._registers(text)
        elif text[0] == ".":
            if not text.startswith(".pragma"):
                _declare(self.kernel, text)
        else:
            self.kernel.instructions.append(self._instruction(text, position))

    def _registers(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()
        for name in split_operands(names):
            if ranged := re.fullmatch(r"([\w$%]+)<(\d+)>", name):
                for i in range(int(ranged.group(2))):
                    self.kernel.registers[f"{ranged.group(1)}{i}"] = BITS[kind]
                continue
            unique = name
            if len(self.scopes) > 1:
                unique = self.scopes[-1][name] = f"{name}@{self.scope_count}"
            self.kernel.registers[unique] = BITS[kind]

    def _instruction(self, text: str, position: int) -> Instruction:
        guard, body = None, text
        if text[0] == "@":
            guard, body = text[1:].split(None, 1)
        opcode = re.match(r"[\w.:]+", body).group(0)
        operands = [self._resolve(operand) for operand in split_operands(body[len(opcode) :])]
        line = bisect(self.newlines, position) + 1
        place = f"PTX line {line}" + (f" ({self.location})" if self.location else "")
        negated = guard is not None and guard[0] == "!"
        guard = self._resolve(guard.lstrip("!")) if guard else None
        return Instruction(tuple(opcode.replace("::", "_").split(".")), operands, guard, negated, text, place)

    def _resolve(self, operand: str) -> str:
        """Names of an inner scope in their unique form."""
        for scope in reversed(self.scopes):
            for name, unique in scope.items():
                operand = re.sub(rf"(?<![\w$%@]){re.escape(name)}(?![\w$@])", unique, operand)
        return operand


def _without_comments(source: str) -> str:
    """Comments become blanks; line numbers stay."""
    source = re.sub(r"/\*.*?\*/", lambda match: re.sub(r"[^\n]", " ", match.group(0)), source, flags=re.DOTALL)
    return re.sub(r"//[^\n]*", "", source)


def _matching_brace(text: str, start: int) -> int:
    depth, position = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        position += 1
    return position - 1


def _module_statements(text: str) -> Iterator[str]:
    """Declarations outside of all functions."""
    depth, current = 0, ""
    for char in text:
        if char in "{}":
            depth += 1 if char == "{" else -1
            current += char
            if depth == 0 and "=" not in current:
                current = ""  # a function or a section
        elif char == ";" and depth == 0:
            yield " ".join(current.split())
            current = ""
        else:
            current += char
    if depth:
        raise ValueError("the PTX has unbalanced braces")


def _declare(kernel: Kernel, statement: str) -> None:
    start = re.search(r"(?:\.(?:extern|visible|weak|common)\s+)*\.(?:shared|global|const|local)\b", statement)
    match = _VARIABLE.match(statement, start.start()) if start else None
    if match is None:
        return
    space, align, kind, name, count, values = match.groups()
    size = BITS[kind] // 8
    numbers = [int(value, 0) for value in re.findall(r"-?\b(?:0x[0-9a-fA-F]+|\d+)\b", values or "")]
    variable = Variable(name, kind, int(count or (1 if count is None else 0)), int(align or size), numbers)
    {"shared": kernel.shared, "local": kernel.local}.get(space, kernel.module).append(variable)


def _parameters(text: str) -> list[Variable]:
    out, offset = [], 0
    for declaration in split_operands(text):
        pointer = re.sub(r"\.ptr\b.*?(?=\s[\w$]+$)", "", declaration)
        match = re.search(r"(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d+)\])?$", pointer)
        align, kind, name, count = match.groups()
        variable = Variable(name, kind, int(count or 1), int(align or BITS[kind] // 8))
        offset = -(-offset // variable.align) * variable.align
        variable.offset = offset
        offset += variable.bytes
        out.append(variable)
    return out


def _files(text: str) -> dict[str, str]:
    """Numbers of .file directives to base names."""
    found = re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text)
    return {number: path.rsplit("/", 1)[-1] for number, path in found}
