"""A tiny random model of every causal-LM type of transformers, shrunk from its configuration by rules.

The types are those of transformers' own mapping, so that a new release brings its new types into the tests. A type that
the rules cannot shrink needs a row of ``OVERRIDES``; until it has one, it is listed as not built.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from tiny_models import BOS, EOS, HIDDEN, LAYERS, PAD, VOCAB, prompts
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from incline_fast.models.architectures import describe
from incline_fast.models.sites import UnsupportedModelError

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LARGEST = 20_000_000
"""Parameters of a model that is still called tiny."""

# The first pattern that a field's name contains decides its value, which is never larger than the default.
_RULES = [
    (re.compile(pattern), value)
    for pattern, value in (
        (r"^(num_hidden_layers|n_layers?|num_layers|num_blocks|(en|de)coder_layers|num_(en|de)coder_layers)$", LAYERS),
        (r"_layers$", 1),
        (r"^(qk_rope_head_dim|hidden_size_per_layer_input)$", 8),
        (r"^rotary_dim$", 4),
        (r"(d_state|state_size)$", 8),
        (r"chunk_size$", 16),
        (r"(^|_)vocab_size|vocab$", VOCAB),
        (
            r"^(hidden_size|d_model|n_embd|emb_dim|(input_|output_)?embedding_size|embedding_dim|dim_model|lru_width"
            r"|word_embed_proj_dim|backbone_hidden_size|attention_hidden_size)$",
            HIDDEN,
        ),
        (r"(kv_heads|key_value_heads|query_groups|key_heads)$", 2),
        (r"^mamba_(n|num)_heads$", 8),
        (r"(attention_heads|_heads|n_heads?|num_heads|value_heads)$", 4),
        (r"(head_dim|headdim|kv_channels|dim_head|attention_head_size|d_head|d_kv)$", 8),
        (r"^mamba_d_ssm$", 64),
        (
            r"(intermediate_size|intermediate_size_mlp|ffn_dim|dim_ff|^dff|feed_forward_size|ffn_hidden_size|n_inner)$",
            48,
        ),
        (r"(num_experts_per_tok(en)?|moe_topk|moe_k|top_k|topk)$", 2),
        (r"experts$", 4),
        (r"^(n_group|topk_group)$", 1),
        (r"_rank$", 8),
        (r"^(max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length|model_max_length)$", 64),
        (r"^max_(target|source)_positions$", 64),
        (r"^(sliding_window(_size)?|(attention_)?window_size|attention_chunk_size|local_attention)$", 8),
    )
]

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"num_expert_group": 1, "topk_group": 1},
    "bamba": {"attn_layer_indices": [1]},
    "blenderbot": {"encoder_layers": LAYERS, "decoder_layers": LAYERS},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_method": "greedy"},
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1], [["global"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8, "num_experts": 2, "moe_topk": 1, "moe_intermediate_size": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2},
    "qwen4_exp_text": {
        "num_key_value_heads": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "output_gate_type": "sigmoid",
    },
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},  # heads are rounded up to multiples of 64
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid", "linear_attention"],
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_dt_rank": 4,
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 16,
        "n_mamba_heads": 2,
    },
    "zamba2": {
        "attention_hidden_size": 2 * HIDDEN,
        "attention_head_dim": 16,
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "kv_channels": 16,
    },
}


_LAYER_NUMBERS = re.compile(r"^_|_idxs$|_ids$|^moe_layers$")
"""Lists that name layers, and do not have one entry for each."""


class NotBuiltError(Exception):
    """No tiny model of a type: the message says why."""


def tiny_decoder(model_type: str, seed: int = 0, auto_class: Any = AutoModelForCausalLM) -> PreTrainedModel:
    """A random evaluated fp32 model of this type with a residual stream that is not small.

    ``auto_class`` makes it from its configuration: a causal LM, or an image-text model with one inside.

    Raises:
        NotBuiltError: its configuration cannot be shrunk by the rules, a package is missing, or it does not generate.
    """
    try:
        model = _scrambled(_config(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {})), seed, auto_class)
        model.generate(**prompts((4, 4)), max_new_tokens=2, do_sample=False)
        return model
    except Exception as error:
        raise NotBuiltError(f"{type(error).__name__}: {' '.join(str(error).split())[:160]}") from error


def row(model_type: str) -> tuple[str, str, str]:
    """The type, the path that its edits take, and what there is to say about it: a row of ``docs/decoders.md``."""
    try:
        model = tiny_decoder(model_type)
    except NotBuiltError as error:
        return model_type, "not built", str(error)
    try:
        architecture = describe(model)
    except UnsupportedModelError as error:
        return model_type, "refused", str(error).partition(" cannot be edited: ")[2] or str(error)
    hooked = [str(site.index) for site in architecture.sites if site.tap != "norm"]
    if not hooked:
        return model_type, "norm", ""
    notes = [] if len(hooked) == len(architecture.sites) else [f"hooks at the sites {', '.join(hooked)}"]
    notes += ["parallel streams"] * (architecture.sites[0].stream_axis is not None)
    return model_type, "hook" if len(hooked) == len(architecture.sites) else "norm, hook", "; ".join(notes)


def _scrambled(config: Any, seed: int, auto_class: Any) -> PreTrainedModel:
    with torch.device("meta"):
        size = sum(p.numel() for p in auto_class.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"it has {size} parameters")
    torch.manual_seed(seed)
    model: PreTrainedModel = auto_class.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, module.in_features**-0.5)
            elif isinstance(module, nn.Embedding):
                module.weight.normal_()
            elif "norm" in name.lower() or "ln_" in name:
                # Fresh norms are all ones and zeros, which would hide a wrong weight, offset or bias.
                for parameter in module.parameters(recurse=False):
                    parameter.add_(0.3 * torch.randn_like(parameter))
    if model.can_generate():
        model.generation_config.eos_token_id = None  # random models would stop at random places
        model.generation_config.forced_eos_token_id = None
    return model.eval().requires_grad_(False)


def _config(config_class: type, overrides: dict[str, Any]) -> Any:
    default = config_class()
    fields = {name: small for name, value in vars(default).items() if (small := _small(name, value)) is not None}
    fields |= {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    if "qk_rope_head_dim" in fields:  # multi-head latent attention has one key per query head
        fields.pop("qk_head_dim", None)
        fields |= {"num_key_value_heads": fields["num_attention_heads"]} if "num_key_value_heads" in fields else {}
    for alias, name in getattr(config_class, "attribute_map", {}).items():
        if name in fields:
            fields.pop(alias, None)
    for name in getattr(config_class, "sub_configs", {}):
        part = getattr(default, name, None)
        if part is not None:
            fields[name] = _config(type(part), OVERRIDES.get(part.model_type, {})).to_dict()
    fields |= _per_layer(default, fields)
    # Encoders of the BERT family are decoders with this setting.
    fields |= {"is_decoder": True} if hasattr(default, "is_decoder") and default.is_decoder is False else {}
    return config_class(**{**fields, **overrides})


def _small(name: str, value: Any) -> int | None:
    if type(value) is not int or value <= 0 or name.startswith("_") or name.endswith(("token_id", "token_index")):
        return None
    return next((min(value, small) for pattern, small in _RULES if pattern.search(name)), None)


def _per_layer(default: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Lists with one entry per layer, cut down to every combination of entries once, and as many layers."""
    layers = getattr(default, "num_hidden_layers", None)
    aliases = getattr(type(default), "attribute_map", {})
    lists = {
        name: list(value)
        for name, value in vars(default).items()
        if isinstance(value, list | tuple) and len(value) == layers and not _LAYER_NUMBERS.search(name)
    }
    lists = {name: value for name, value in lists.items() if aliases.get(name) not in lists}
    if not lists:
        return {}
    kinds = list(dict.fromkeys(zip(*lists.values(), strict=True)))
    chosen = (kinds + kinds[:1] * LAYERS)[: max(LAYERS, len(kinds))]
    cut: dict[str, Any] = {name: len(chosen) for name in fields if re.match(_RULES[0][0], name)}
    for name, column in zip(lists, zip(*chosen, strict=True), strict=True):
        cut[name] = [_small(name.removesuffix("_per_layer"), value) or value for value in column]
    return cut
