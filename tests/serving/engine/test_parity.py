"""vLLM with the plugin gives the tokens of transformers with ``intervene``, however the engine cuts the work."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from tiny_engine import asks, save_model

CASES = [
    ("llama", "compiled"),
    ("llama", "chunks of 16"),
    ("llama", "tiny cache"),
    ("llama", "speculative"),
    ("llama", "two ranks"),
    ("gemma3", "eager"),
    ("qwen3", "eager"),
    ("gpt2", "eager"),
]


def measured(model: str, folder: Path, requests: list[Any], tokens: int, configuration: str) -> list[Any]:
    from benchmarks.serving.parity import run

    return list(run(model, folder, requests, tokens, [configuration]))


@pytest.mark.parametrize(("model", "configuration"), CASES)
def test_tokens_and_log_probabilities(model, configuration, tmp_path):
    requests = asks(40)
    given = (model, save_model(model, tmp_path / model), requests, 24, configuration)
    if configuration == "speculative":
        # Drafted tokens are edited where they are verified. In a process that has loaded llvmlite, as speculation of
        # n-grams does, vLLM 0.32 cannot start another engine: it has a process of its own.
        requests[::2] = [replace(ask, positions="generated") for ask in requests[::2]]
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows = pool.submit(measured, *given).result()
    else:
        rows = measured(*given)
    for row in rows:
        assert row.comparable >= 38, row
        assert row.equal == row.comparable, row
        assert row.edited >= row.changed >= row.edited / 2, "edits that change nothing would prove nothing"
        assert max(row.max_dlogp.values()) < 1e-3, row
    if configuration == "tiny cache":
        assert rows[0].preemptions > 0, rows
    if configuration == "speculative":
        assert rows[0].accepted_drafts > 0, rows
    if configuration == "compiled":
        assert rows[1].cached_tokens > rows[0].cached_tokens, "beginnings of plain prompts serve edited ones"
