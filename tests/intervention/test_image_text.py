"""Text decoders inside image-text models: edited from the wrapper, with and without an image in the prompt."""

from __future__ import annotations

import pytest
import torch
from decoder_zoo import tiny_decoder
from hook_reference import HookedEdit, last_tokens
from test_every_decoder import ALPHA, CLOSE, check_edited, random_maps
from tiny_models import tiny
from transformers import AutoModelForImageTextToText

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.intervene import intervene
from incline_fast.models.architectures import describe

TYPES = ["gemma3", "gemma4", "qwen3_vl", "qwen3_5_moe", "mistral3", "llama4", "llava", "idefics3", "internvl", "mllama"]


@pytest.mark.parametrize("model_type", TYPES)
def test_prompts_without_images(model_type):
    model = tiny_decoder(model_type, auto_class=AutoModelForImageTextToText)
    assert check_edited(model, model_type) == "norm"
    architecture = describe(model)
    assert architecture.backbone is not model
    assert not any("vision" in site.path for site in architecture.sites)


def test_a_prompt_with_an_image():
    model = tiny("gemma3-multimodal", image_token_id=60, mm_tokens_per_image=1)
    model.model.multi_modal_projector.mm_input_projection_weight.normal_()  # zeros at first
    ids = torch.tensor([[1, 5, 60, 8, 9, 11], [1, 7, 60, 12, 4, 3]])
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": (ids == 60).long()}
    maps = random_maps(len(describe(model).sites), describe(model).hidden_size)
    edit = HookedEdit(maps, ALPHA, where=last_tokens(inputs["attention_mask"]))
    with torch.no_grad():
        plain = model(**inputs, pixel_values=pixels).logits
        with edit.on(model):
            expected = model(**inputs, pixel_values=pixels).logits
        with intervene(model, Alignment.from_maps(maps), alpha=ALPHA):
            actual = model(**inputs, pixel_values=pixels).logits
            other = model(**inputs, pixel_values=-pixels).logits
    torch.testing.assert_close(actual, expected, **CLOSE)
    assert torch.equal(actual[:, :-1], plain[:, :-1])
    assert (actual - other).abs().max() > 1e-3, "the image does not matter"
