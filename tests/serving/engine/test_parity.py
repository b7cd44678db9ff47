"""vLLM with the plugin gives the tokens of transformers with ``intervene``, however the engine cuts the work."""

from __future__ import annotations

from dataclasses import replace

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


@pytest.mark.parametrize(("model", "configuration"), CASES)
def test_tokens_and_log_probabilities(model, configuration, tmp_path):
    from benchmarks.serving.parity import run

    requests = asks(40)
    if configuration == "speculative":  # drafted tokens are edited where they are verified
        requests = [replace(ask, positions="generated") if i % 2 else ask for i, ask in enumerate(requests)]
    rows = list(run(model, save_model(model, tmp_path / model), requests, 24, [configuration]))
    for row in rows:
        assert row.comparable >= 38, row
        assert row.equal == row.comparable, row
        assert row.edited >= row.changed >= 0.9 * row.edited, "edits that change nothing would prove nothing"
        assert row.max_dlogp < 1e-3, row
    if configuration == "tiny cache":
        assert rows[0].preemptions > 0, rows
    if configuration == "speculative":
        assert rows[0].accepted_drafts > 0, rows
    if configuration == "compiled":
        assert rows[1].cached_tokens > rows[0].cached_tokens, "beginnings of plain prompts serve edited ones"
