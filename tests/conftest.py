"""Fixtures that need something from outside the repository; tests that use them skip visibly without it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from emulator.errors import MissingToolError

CACHE = Path(__file__).parents[1] / "demo" / "cache"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How many of the cases of a parametrised test are run."""
    parser.addoption(
        "--one-in", type=int, default=1, metavar="N", help="of the cases of each parametrised test run the first of N"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what ``--one-in`` leaves out; the first case of every test stays."""
    seen: Counter[str] = Counter()
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        test = item.nodeid.partition("[")[0]
        (left_out if seen[test] % config.getoption("--one-in") else kept).append(item)
        seen[test] += 1
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup() -> Generator[None, object, object]:
    """A test, or a fixture of it, for which the emulators lack a tool is skipped with their message."""
    try:
        return (yield)
    except MissingToolError as missing:
        pytest.skip(str(missing))


pytest_runtest_call = pytest_runtest_setup


@pytest.fixture(scope="session")
def real_model_path() -> Path:
    """Folder of a downloaded multilingual model: ``INCLINE_FAST_MODEL``, or what ``make setup`` fetched."""
    named = os.environ.get("INCLINE_FAST_MODEL")
    found = [Path(named)] if named else sorted(path.parent for path in CACHE.glob("**/config.json"))
    if not found or not (found[0] / "config.json").exists():
        pytest.skip("no downloaded model: run `make setup`, or name a folder in INCLINE_FAST_MODEL")
    return found[0]


@pytest.fixture(scope="session")
def real_model(real_model_path):
    """The downloaded model in fp32 and its tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(real_model_path, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(real_model_path)
