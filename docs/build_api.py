"""Write docs/api.md from the docstrings of the public API.

python docs/build_api.py            rewrite docs/api.md
python docs/build_api.py --check    exit with 1 if docs/api.md is not what the docstrings say
"""

from __future__ import annotations

import argparse
import inspect
import sys
from pathlib import Path
from typing import Any

import incline_fast
from incline_fast import ops

TARGET = Path(__file__).with_name("api.md")
HEADER = "# API reference\n\nWritten from the docstrings by `python docs/build_api.py`; do not edit by hand.\n"


def main() -> None:
    """Write or check the reference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with docs/api.md instead of writing it")
    text = render()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
    elif not TARGET.exists() or TARGET.read_text(encoding="utf-8") != text:
        sys.exit("docs/api.md is not what the docstrings say; run: python docs/build_api.py")


def render() -> str:
    """The whole reference as Markdown."""
    parts = [HEADER]
    for prefix, module in (("incline_fast", incline_fast), ("incline_fast.ops", ops)):
        names = [n for n in module.__all__ if not inspect.ismodule(getattr(module, n)) and not n.startswith("__")]
        parts += [entry(f"{prefix}.{name}", getattr(module, name)) for name in names]
    return "\n".join(parts)


def entry(title: str, thing: Any) -> str:
    """One function, or one class with its public methods."""
    if not callable(thing):
        return f"## {title}\n\n`{thing!r}`\n"
    lines = [f"## {title}\n", "```python", f"{title.rpartition('.')[2]}{signature(thing)}", "```\n", doc(thing)]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        lines += [member(name, value) for name, value in vars(thing).items() if not name.startswith("_")]
    return "\n".join(line for line in lines if line) + "\n"


def member(name: str, value: Any) -> str:
    """A method or property of a class; plain attributes are described in the class docstring."""
    target = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if isinstance(target, property):
        return f"### .{name}\n\n{doc(target)}" if target.__doc__ else ""
    if inspect.isfunction(target) and target.__doc__:
        return f"### .{name}{signature(target)}\n\n{doc(target)}"
    return ""


def signature(thing: Any) -> str:
    """The call signature, without the noise of module paths in annotations."""
    try:
        return str(inspect.signature(thing)).replace("'", "")
    except (TypeError, ValueError):
        return "(...)"


def doc(thing: Any) -> str:
    """The docstring in a fenced block, so that its formulas and lists stay as they were written."""
    text = inspect.getdoc(thing)
    return f"```text\n{text}\n```\n" if text else ""


if __name__ == "__main__":
    main()
