"""Every causal-LM type of transformers: edited as by hooks on its blocks, or refused with the reason.

One tiny model per type of transformers' own mapping; see ``decoder_zoo``. Compared are the logits of every step, the
cache, the greedy tokens and a right-padded batch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decoder_zoo import MODEL_TYPES, NotBuiltError, tiny_decoder
from hook_reference import HookedEdit, blocks_of, last_tokens
from interventions import generate
from tiny_models import prompts
from torch import Tensor
from transformers import PreTrainedModel

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.models.architectures import UnsupportedModelError, describe

STEPS = 3
ALPHA = 0.6
CLOSE = {"rtol": 2e-4, "atol": 2e-4}

# Types that are refused, and why.
REFUSED = {
    "cpmant": "tensors of shape",  # it prepends a soft prompt, so that its columns are not the tokens
    "hrm_text": "not once each",  # two stacks of blocks take turns several times
    "prophetnet": "cross-attention",
    "reformer": "did not run",  # reversible blocks carry two states, in a tuple with names
    "xlm": "could each be its list of blocks",  # attention and feed-forward lie in lists of their own
    "xlnet": "tensors of shape",  # states are [T, B, d]
}
# Types whose blocks pass on parallel streams, and the axis of the streams.
STREAMS = {"deepseek_v4": 2, "hy_v4": 2, "gemma3n_text": 0}


def random_maps(sites: int, size: int) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {site: torch.randn(size, size, generator=generator) / size**0.5 for site in range(sites)}


def cached(cache: Any) -> list[Tensor]:
    """Every tensor that a cache holds, keys and values as well as the states of recurrent layers."""
    if cache is None or isinstance(cache, list):
        return cache or []
    found: list[Tensor] = []
    for layer in getattr(cache, "layers", [cache]):
        for value in vars(layer).values():
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            found += [part for part in parts if isinstance(part, Tensor) and part.is_floating_point()]
    return found


def check_edited(model: PreTrainedModel, model_type: str) -> str:
    """Compare ``intervene`` with hooks; returns the path taken."""
    architecture = describe(model)
    maps = random_maps(len(architecture.sites), architecture.hidden_size)
    assert len(architecture.sites) == len(blocks_of(model)) + 1
    alignment = Alignment.from_maps(maps)
    streams = STREAMS.get(model_type)

    left = prompts((6, 4))

    def last_of_prompt(states: Tensor) -> list[tuple[int, int]]:
        # Models without a cache run the prompt again at every step; a pass of one token is a step with a cache.
        return [(0, 5), (1, 5)] if states.shape[1] >= 6 else []

    edit = HookedEdit(maps, ALPHA, where=last_of_prompt, streams=streams)
    plain_tokens, plain = generate(model, left, STEPS)
    with edit.on(model):
        expected_tokens, expected = generate(model, left, STEPS)
    with intervene(model, alignment, alpha=ALPHA):
        tokens, out = generate(model, left, STEPS)
    scale = float(expected.logits[0].abs().max())
    assert float((expected.logits[0] - plain.logits[0]).abs().max()) > 0.01 * scale, "the edit does too little"
    assert torch.equal(tokens, expected_tokens)
    for actual, wanted in zip(out.logits, expected.logits, strict=True):
        torch.testing.assert_close(actual / scale, wanted / scale, **CLOSE)
    for actual, wanted in zip(cached(out.past_key_values), cached(expected.past_key_values), strict=True):
        torch.testing.assert_close(actual, wanted, **CLOSE)
    again, _ = generate(model, left, STEPS)
    assert torch.equal(again, plain_tokens), "the model is not as before"

    right = prompts((6, 4), side="right")
    edit = HookedEdit(maps, ALPHA, where=last_tokens(right["attention_mask"]), streams=streams)
    with torch.no_grad():
        with edit.on(model):
            wanted = model(**right).logits
        with intervene(model, alignment, alpha=ALPHA):
            actual = model(**right).logits
    real = right["attention_mask"].bool()
    torch.testing.assert_close(actual[real] / scale, wanted[real] / scale, **CLOSE)
    norms = [site.tap == "norm" for site in architecture.sites]
    return "norm" if all(norms) else "norm, hook" if any(norms) else "hook"


PAGE = (Path(__file__).parents[2] / "docs" / "decoders.md").read_text()


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_decoder_of_transformers(model_type):
    try:
        model = tiny_decoder(model_type)
    except NotBuiltError as error:
        pytest.skip(f"not built: {error}")
    if model_type in REFUSED:
        with pytest.raises(UnsupportedModelError, match=REFUSED[model_type]):
            describe(model)
        path = "refused"
    else:
        path = check_edited(model, model_type)
    if f"types of transformers {transformers.__version__}:" in PAGE:
        assert f"\n| {model_type} | {path} |" in PAGE, "python docs/build_decoders.py writes the page anew"


def test_at_least_100_types_are_edited():
    paths = re.findall(r"^\| [\w.-]+ \| (norm|norm, hook|hook|refused|not built) \|", PAGE, re.MULTILINE)
    edited = sum(path in ("norm", "norm, hook", "hook") for path in paths)
    assert edited >= 100
    assert edited + paths.count("refused") >= 105
