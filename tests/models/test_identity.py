"""What an alignment remembers of its model: names, config and weights."""

from __future__ import annotations

import pytest
import torch
from tiny_models import CONFIGS, HIDDEN, LAYERS, tiny
from transformers import AutoConfig

from incline_fast.models.architectures import UnsupportedModelError
from incline_fast.models.identity import config_hash, identify, weights_hash


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_hash_survives_saving(name, tmp_path):
    config = tiny(name).config
    config.save_pretrained(tmp_path)
    assert config_hash(AutoConfig.from_pretrained(tmp_path)) == config_hash(config)


def test_the_config_hash_sees_what_moves_states_and_nothing_else():
    reference = identify(tiny("gemma3")).config_hash
    irrelevant = {
        "use_cache": False,
        "bos_token_id": 7,
        "attention_dropout": 0.1,
        "vocab_size": 70,
        "tie_word_embeddings": False,
        "initializer_range": 0.3,
        "final_logit_softcapping": 30.0,
    }
    for field, value in irrelevant.items():
        assert identify(tiny("gemma3", **{field: value})).config_hash == reference, field
    relevant = {
        "rms_norm_eps": 1e-5,
        "num_attention_heads": 8,
        "intermediate_size": 40,
        "sliding_window": 8,
        "query_pre_attn_scalar": 16,
        "hidden_activation": "relu",
    }
    seen = {reference, *(identify(tiny("gemma3", **{field: value})).config_hash for field, value in relevant.items())}
    assert len(seen) == 1 + len(relevant)


def test_sizes_and_compiled_models():
    model = tiny("llama")
    identity = identify(model)
    assert (identity.num_layers, identity.hidden_size, identity.model_id) == (LAYERS, HIDDEN, "")
    compiled = torch.compile(model, backend="eager")
    assert identify(compiled) == identity
    assert weights_hash(compiled) == weights_hash(model)
    with pytest.raises(UnsupportedModelError):
        identify(torch.nn.Linear(2, 2))


def test_the_weights_hash_sees_another_seed_dtype_and_weight():
    model = tiny("llama")
    reference = weights_hash(model)
    assert weights_hash(tiny("llama")) == reference
    assert weights_hash(tiny("llama", seed=1)) != reference
    assert weights_hash(tiny("llama").bfloat16()) != reference
    model.model.norm.weight[0] += 1
    assert weights_hash(model) != reference


def test_weights_without_values_are_hashed_by_shape():
    with torch.device("meta"):
        model = torch.nn.Linear(3, 3)
    assert weights_hash(model) != weights_hash(torch.nn.Linear(3, 3))
