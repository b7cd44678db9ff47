"""What the tests of the ways into an edited model share: the hooked model to compare with, and greedy generation."""

from __future__ import annotations

import torch
from hook_reference import HookedEdit, last_tokens
from interventions import STEPS, random_maps
from transformers.generation.stopping_criteria import StoppingCriteria

from incline_fast.alignment.alignment import Alignment

MAPS = random_maps()
ALIGNMENT = Alignment.from_maps(MAPS)
NAMES = ["llama", "gpt2", "olmo2", "opt-post"]


def hooked(model, inputs, alpha=0.6, where=None):
    edit = HookedEdit(MAPS, alpha, where=last_tokens(inputs["attention_mask"]) if where is None else where)
    with edit.on(model):
        return model(**inputs).logits


class Greedy(StoppingCriteria):
    """Never stops; calls something after every step."""

    def __init__(self, action):
        self.action = action

    def __call__(self, input_ids, scores, **kwargs):
        self.action(input_ids)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def settings(**changes):
    return {"max_new_tokens": STEPS, "do_sample": False, **changes}
