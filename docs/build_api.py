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
from incline_fast import evaluation, ops
from incline_fast.fitting import estimators, memory_plan, options
from incline_fast.intervention import sweep
from incline_fast.models import architectures
from incline_fast.solver import linalg, ridge
from incline_fast.states import hidden_states
from incline_fast.text import parallel_text

TARGET = Path(__file__).with_name("api.md")
MODULES = (
    incline_fast,
    ops,
    hidden_states,
    options,
    estimators,
    ridge,
    linalg,
    memory_plan,
    sweep,
    evaluation,
    parallel_text,
    architectures,
)
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
    for module in MODULES:
        parts.append(f"# {module.__name__}\n")
        # Instances (tables, tuples) are described where they are used; modules have a part of their own.
        public = {name: getattr(module, name) for name in module.__all__}
        parts += [
            entry(name, thing) for name, thing in public.items() if inspect.isfunction(thing) or inspect.isclass(thing)
        ]
    return "\n".join(parts)


def entry(title: str, thing: Any) -> str:
    """One function, or one class with its public methods."""
    lines = [f"## {title}\n", "```python", f"{title}{signature(thing)}", "```\n", doc(thing)]
    if inspect.isclass(thing) and not issubclass(thing, Exception):
        lines += [member(name, value) for name, value in vars(thing).items() if not name.startswith("_")]
    return "\n".join(line for line in lines if line) + "\n"


def member(name: str, value: Any) -> str:
    """A method or property of a class; plain attributes are described in the class docstring."""
    target = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    if isinstance(target, property):
        return f"### .{name}\n\n{doc(target)}" if target.__doc__ else ""
    if inspect.isfunction(target) and target.__doc__:
        return f"### .{name}\n\n```python\n{name}{signature(target)}\n```\n\n{doc(target)}"
    return ""


def signature(thing: Any) -> str:
    """The call signature, without the noise of module paths in annotations."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    bound = [p for name, p in found.parameters.items() if name not in ("self", "cls")]
    line = str(found.replace(parameters=bound))
    return line if len(line) < 100 else line.replace(", ", ",\n    ").replace("(", "(\n    ", 1)


def doc(thing: Any) -> str:
    """The docstring in a fenced block, so that its formulas and lists stay as they were written."""
    text = inspect.getdoc(thing)
    return f"```text\n{text}\n```\n" if text else ""


if __name__ == "__main__":
    main()
