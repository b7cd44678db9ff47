"""Tiny random models that vLLM can run, with a tokenizer, and requests for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import BOS, EOS, PAD, VOCAB
from tiny_tokenizer import WORDS, tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

_COMMON = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "initializer_range": 0.2}
# Heads of 32 numbers are the smallest that vLLM's attention on CPUs takes.
_LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
RANK, SCALE = 8, 0.5  # of the adapter
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", **_LLAMA},
    "qwen3": {"model_type": "qwen3", **_LLAMA},
    "gemma3": {"model_type": "gemma3_text", **_LLAMA, "sliding_window": 16, "query_pre_attn_scalar": 32},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 4, "n_head": 2, "n_positions": 512},
}


def save_model(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    settings = dict(CONFIGS[name])
    config = AutoConfig.for_model(settings.pop("model_type"), **settings, **_COMMON)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_adapter(model: Path, adapter: Path, merged: Path) -> None:
    """A LoRA adapter of a tiny Llama, and the model with the adapter's products added to its weights."""
    network = AutoModelForCausalLM.from_pretrained(model)
    generator = torch.Generator().manual_seed(1)
    factors = {}
    for name, module in network.named_modules():
        if name.endswith(("q_proj", "down_proj")):
            down = torch.randn(RANK, module.in_features, generator=generator) / module.in_features**0.5
            up = torch.randn(module.out_features, RANK, generator=generator) / RANK**0.5
            module.weight.data += SCALE * up @ down
            factors[f"base_model.model.{name}.lora_A.weight"] = down
            factors[f"base_model.model.{name}.lora_B.weight"] = up
    network.save_pretrained(merged)
    tiny_tokenizer().save_pretrained(merged)
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": SCALE * RANK, "bias": "none"}
    about["target_modules"] = ["q_proj", "down_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(about))


def asks(count: int, seed: int = 0) -> list[Any]:
    """Prompts of 2 to 90 tokens, some with equal beginnings; every fourth is plain, the others name one of the maps."""
    from benchmarks.serving.workload import LANGUAGES, Ask

    chooser = random.Random(seed)
    shared = chooser.choices(WORDS, k=40)
    made = []
    for i in range(count):
        words = chooser.choices(WORDS, k=chooser.randint(1, 48))
        prompt = " ".join([*shared, *words] if i % 3 == 0 else words)
        made.append(Ask(prompt, None if i % 4 == 3 else f"{LANGUAGES[i % 4]}-en"))
    return made
