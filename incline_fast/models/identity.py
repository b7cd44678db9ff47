"""Which model is this: what an alignment or a folder of states remembers of the model that it came from."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from incline_fast.models.architectures import Architecture, describe
from incline_fast.models.errors import UnsupportedModelError
from incline_fast.models.wrappers import has_part_of_weights, plain_model, raw_bytes

__all__ = ["ModelIdentity", "config_hash", "identify", "identify_config", "identity_of", "weights_hash"]

# Fields of a config that cannot change the residual stream of an evaluated model. Everything else enters the hash, so
# that a field this list does not know makes the check stricter, not laxer. The vocabulary's size is here because
# resizing the embedding for a padding token is common and moves no state; a quantised copy is the same model.
_IRRELEVANT = re.compile(
    r"^_|dropout|pdrop|^output_|^return_|_token_id$|^summary_|^(transformers_version|architectures|dtype|torch_dtype"
    r"|use_cache|id2label|label2id|problem_type|initializer_range|tie_word_embeddings|final_logit_softcapping"
    r"|chunk_size_feed_forward|quantization_config|vocab_size)$"
)
_SAMPLES_PER_TENSOR = 64


@dataclass(frozen=True)
class ModelIdentity:
    """Name, structure and sizes of a model.

    Attributes:
        model_id: hub name, or the folder's name for a local model; empty for a model made from a bare config.
        config_hash: see :func:`config_hash`.
        num_layers: number L of blocks; sites run from 0 to L.
        hidden_size: width d of the residual stream.
    """

    model_id: str
    config_hash: str
    num_layers: int
    hidden_size: int


def identify(model: nn.Module) -> ModelIdentity:
    """The identity of a transformers decoder.

    Raises:
        UnsupportedModelError: the architecture is not known to :mod:`incline_fast.models`.
    """
    return identity_of(describe(model))


def identity_of(architecture: Architecture) -> ModelIdentity:
    """:func:`identify` for a model that has been described."""
    config = architecture.config
    name = _model_id(str(getattr(config, "_name_or_path", "") or ""))
    # Not the sizes of the config: some models pass on states that are wider than their hidden_size.
    return ModelIdentity(name, config_hash(config), architecture.num_layers, architecture.hidden_size)


def identify_config(config: Any, name: str) -> ModelIdentity:
    """The identity of a decoder that is not loaded here.

    Args:
        config: transformers configuration of its text decoder.
        name: hub name or folder that it was read from.
    """
    return ModelIdentity(_model_id(name), config_hash(config), int(config.num_hidden_layers), int(config.hidden_size))


def config_hash(config: Any) -> str:
    """First 16 hex digits of the SHA-256 of the config fields that determine the residual stream.

    Fields that are None are left out, so that an option added by a later transformers release changes no hash.
    """
    content = (type(config), repr(vars(config)))
    found = _HASHES.get(content)
    if found is None:
        fields = {k: v for k, v in config.to_dict().items() if v is not None and not _IRRELEVANT.search(k)}
        found = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if len(_HASHES) >= _HASHES_KEPT:
            _HASHES.clear()
        _HASHES[content] = found
    return found


_HASHES: dict[tuple[type, str], str] = {}
"""The hashes of configs by their content. They are kept because ``to_dict`` makes a deep copy, which takes longer than
all other checks when an intervention is entered."""
_HASHES_KEPT = 256


def weights_hash(model: nn.Module) -> str:
    """First 16 hex digits of a SHA-256 over names, dtypes, shapes and about 64 evenly spaced values of every weight.

    Cheap enough for every run (no weight is read whole) and different for a fine-tuned copy of the same architecture.

    Raises:
        UnsupportedModelError: this process has only parts of the weights, which are those of no model.
    """
    if has_part_of_weights(model):
        raise UnsupportedModelError(
            f"the weights of {type(model).__name__} are shared out among processes (tensor parallelism), and what is "
            "kept between runs (resume, tuning, reports) would belong to a part of them; leave resume out, or take a "
            "model that is not shared out"
        )
    digest = hashlib.sha256()
    for name, value in plain_model(model).state_dict().items():
        digest.update(name.encode())
        for part in raw_bytes(value, _SAMPLES_PER_TENSOR):
            digest.update(part)
    return digest.hexdigest()[:16]


def _model_id(name: str) -> str:
    """``org/name`` of a hub model, also from its path in the hub cache; the last component of another local path."""
    cached = re.search(r"models--([^/]+)--([^/]+)/snapshots/", name)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    return Path(name).resolve().name if name and Path(name).exists() else name
