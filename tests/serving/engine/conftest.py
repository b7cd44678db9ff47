"""A tiny model and maps for it; without vLLM every test of this folder is skipped visibly."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    try:
        import vllm  # noqa: F401
    except ImportError:
        reason = "vLLM is not installed here: make test-serve runs these tests in an environment of their own"
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Path:
    from tiny_engine import save_model

    return save_model("llama", tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def maps(model, tmp_path_factory) -> Path:
    from benchmarks.serving.workload import synthetic_maps

    return synthetic_maps(model, tmp_path_factory.mktemp("maps"))
