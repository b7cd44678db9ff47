"""Random maps and a generation shorthand for the intervention tests."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import HIDDEN, LAYERS
from torch import Tensor
from transformers import PreTrainedModel

SITES = range(LAYERS + 1)
STEPS = 5
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def random_maps(seed: int = 0) -> dict[int, Tensor]:
    """One dense map per site whose image is about as large as its argument."""
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(HIDDEN, HIDDEN, generator=generator) / HIDDEN**0.5 for site in SITES}


def random_bias(seed: int = 5) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {site: torch.randn(HIDDEN, generator=generator) / 4 for site in SITES}


def generate(model: PreTrainedModel, inputs: dict[str, Tensor], steps: int = STEPS, **settings: Any) -> Any:
    """New tokens of a greedy generation, and everything else that generate returns."""
    settings = {"do_sample": False, **settings}
    out = model.generate(**inputs, max_new_tokens=steps, return_dict_in_generate=True, output_logits=True, **settings)
    return out.sequences[:, inputs["input_ids"].shape[1] :], out
