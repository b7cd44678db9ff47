"""The kernels of a module as fibers; the module says with ``load(sanitizer)`` which they are."""

from __future__ import annotations

import pytest

from emulator.build import FiberLibrary


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest) -> FiberLibrary:
    return request.module.load("none")


@pytest.fixture(scope="module")
def races(request: pytest.FixtureRequest) -> FiberLibrary:
    return request.module.load("races")


@pytest.fixture(params=["none", "races"])
def library(request: pytest.FixtureRequest) -> FiberLibrary:
    return request.getfixturevalue("plain" if request.param == "none" else "races")
