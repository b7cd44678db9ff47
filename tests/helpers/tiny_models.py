"""Tiny random models of every supported architecture, and prompts for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

LAYERS = 3
HIDDEN = 32
VOCAB = 61
PAD, BOS, EOS = 0, 1, 2

_SPECIAL = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_LLAMA = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_GEMMA = {**_LLAMA, "head_dim": 8}
_GPT = {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA},
    "qwen2": {"model_type": "qwen2", **_LLAMA},
    "qwen3": {"model_type": "qwen3", **_LLAMA, "head_dim": 8},
    "mistral": {"model_type": "mistral", **_LLAMA, "sliding_window": 4},
    "phi3": {"model_type": "phi3", **_LLAMA},
    "smollm3": {"model_type": "smollm3", **_LLAMA, "no_rope_layer_interval": 2},
    "gemma": {"model_type": "gemma", **_GEMMA},
    "gemma2": {"model_type": "gemma2", **_GEMMA, "sliding_window": 4},
    "gemma3": {"model_type": "gemma3_text", **_GEMMA, "sliding_window": 4},
    "gemma3-multimodal": {
        "model_type": "gemma3",
        "text_config": {**_GEMMA, "sliding_window": 4, "vocab_size": VOCAB, **_SPECIAL, "initializer_range": 0.2},
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
    },
    "cohere": {"model_type": "cohere", **_LLAMA},
    "gpt2": {"model_type": "gpt2", "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 64},
    "bloom": {"model_type": "bloom", **_GPT},
    "bloom-post": {"model_type": "bloom", **_GPT, "apply_residual_connection_post_layernorm": True},
    "gpt_neox-parallel": {"model_type": "gpt_neox", **_LLAMA, "use_parallel_residual": True},
    "gpt_neox-sequential": {"model_type": "gpt_neox", **_LLAMA, "use_parallel_residual": False},
    "falcon-7b": {"model_type": "falcon", **_LLAMA, "parallel_attn": True, "multi_query": True},
    "falcon-rw": {"model_type": "falcon", **_LLAMA, "parallel_attn": False, "multi_query": False, "alibi": True},
    "falcon-new": {"model_type": "falcon", **_LLAMA, "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-new-1ln": {
        "model_type": "falcon",
        **_LLAMA,
        "new_decoder_architecture": True,
        "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    },
    "opt": {"model_type": "opt", **_LLAMA, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
    "opt-post": {
        "model_type": "opt",
        **_LLAMA,
        "ffn_dim": 48,
        "word_embed_proj_dim": 16,
        "do_layer_norm_before": False,
    },
    "xglm": {
        "model_type": "xglm",
        "d_model": HIDDEN,
        "ffn_dim": 48,
        "num_layers": LAYERS,
        "attention_heads": 4,
        "max_position_embeddings": 64,
    },
    "olmo2": {"model_type": "olmo2", **_LLAMA},
}


def tiny(name: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A random model in fp32, evaluated, whose residual stream is not so small that every test passes by default."""
    fields = {**CONFIGS[name], "vocab_size": VOCAB, **_SPECIAL, "initializer_range": 0.2, **overrides}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for module_name, parameter in model.named_parameters():
            # Fresh norms are all ones and zeros, which would hide a wrong weight, offset or bias.
            if "norm" in module_name or "ln_" in module_name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    # No end of text: random models would stop at random places.
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)


def prompts(lengths: tuple[int, ...] = (7, 4, 1), side: str = "left", seed: int = 1) -> dict[str, Tensor]:
    """Padded random prompts of the given lengths without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths)
    ids = torch.full((len(lengths), width), PAD)
    mask = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        span = slice(width - length, width) if side == "left" else slice(0, length)
        ids[row, span] = torch.randint(3, VOCAB, (length,), generator=generator)
        mask[row, span] = 1
    return {"input_ids": ids, "attention_mask": mask}


transformers.utils.logging.set_verbosity_error()
