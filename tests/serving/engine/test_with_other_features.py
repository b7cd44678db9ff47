"""Edits beside other things that change what an engine computes: adapters; and what cannot be combined with edits."""

from __future__ import annotations

import pytest
from tiny_engine import asks, save_adapter

TOKENS = 12


def test_adapters(model, maps, tmp_path):
    """Edited and plain requests, with an adapter and without, in one batch."""
    from vllm.lora.request import LoRARequest

    from benchmarks.serving.workload import ask_engine, engine, reference

    merged_model = tmp_path / "merged" / model.name  # maps are made for a model of that name
    save_adapter(model, tmp_path / "adapter", merged_model)
    requests = asks(16)
    adapted = [i % 3 == 0 for i in range(len(requests))]
    without, merged = (reference(folder, maps, requests, TOKENS) for folder in (model, merged_model))
    expected = [merged[i] if adapter else without[i] for i, adapter in enumerate(adapted)]
    assert all(a.tokens != b.tokens or a.logprobs != b.logprobs for a, b in zip(without, merged, strict=True))
    adapter = LoRARequest("tiny", 1, str(tmp_path / "adapter"))
    # vLLM's LoRA on CPUs gives rows without an adapter the one in the last slot; a slot that stays empty is none.
    with engine(model, maps, enforce_eager=True, enable_lora=True, max_loras=2, max_lora_rank=8) as llm:
        # The second time, beginnings of prompts come from the prefix cache.
        for _ in range(2):
            got = ask_engine(llm, requests, TOKENS, [adapter if chosen else None for chosen in adapted])
            for ours, theirs in zip(got, expected, strict=True):
                assert ours.tokens == theirs.tokens
                assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)


def test_pipeline_parallelism_is_refused_at_start_up(model, maps):
    from vllm.engine.arg_utils import EngineArgs

    from incline_fast.serving.errors import ServingError
    from incline_fast.serving.plugin import register

    register()
    configuration = {"incline_fast": {"maps": str(maps)}}
    asked = EngineArgs(str(model), additional_config=configuration, pipeline_parallel_size=2)
    with pytest.raises(ServingError, match="pipeline_parallel_size is above 1"):
        asked.create_engine_config()
