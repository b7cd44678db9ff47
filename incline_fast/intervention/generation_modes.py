"""Modes of ``generate`` that an intervention refuses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

__all__ = ["REFUSED_SETTINGS", "refuse_generation_modes"]

# Modes of ``generate`` whose forward passes are not "one prompt, then one token after another", by the setting that
# turns them on. A setting that is None, False or one of the neutral values named here is off.
REFUSED_SETTINGS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "assistant_model": ("assisted decoding", ()),
    "assistant_early_exit": ("assisted decoding", ()),
    "prompt_lookup_num_tokens": ("assisted decoding", ()),
    "use_mtp": ("assisted decoding", ()),
    "prefill_chunk_size": ("chunked prefill", ()),
    "guidance_scale": ("classifier-free guidance", (1,)),
    "token_healing": ("token healing", ()),
    "custom_generate": ("a custom generation loop", ()),
    "constraints": ("constrained beam search", ()),
    "force_words_ids": ("constrained beam search", ()),
    "num_beam_groups": ("group beam search", (1,)),
    "penalty_alpha": ("contrastive search", (0,)),
    "dola_layers": ("DoLa decoding", ()),
}

_ASKED = (*REFUSED_SETTINGS, "cache_implementation")


def refuse_generation_modes(arguments: Mapping[str, Any], configs: Sequence[Any]) -> None:
    """Raise for generation modes whose forward passes are not a prompt followed by single tokens.

    Raises:
        ValueError: names the setting, its value and the mode.
    """

    # Every generation comes by here several times: what is not among a config's attributes is not asked for one by one.
    sources = [arguments, *(getattr(config, "__dict__", {}) for config in configs)]
    given = {name: value for source in reversed(sources) for name in _ASKED if (value := source.get(name)) is not None}
    if not given:
        return
    for name, (mode, neutral) in REFUSED_SETTINGS.items():
        value = given.get(name)
        if value is not None and value is not False and value not in neutral:
            shown = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            raise ValueError(f"{name}={shown} asks generate for {mode}, which intervene does not support")
    if given.get("cache_implementation") == "paged":
        raise ValueError("cache_implementation='paged' asks generate for continuous batching; use generate_batch")
