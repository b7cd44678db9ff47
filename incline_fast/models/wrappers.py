"""Models that are not plain: compiled, adapted, replicated, sharded, offloaded, quantised, patched.

A wrapper that only calls the model inside it is removed; any other is refused, with advice.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from numbers import Number
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from incline_fast.models.errors import UnsupportedModelError

__all__ = [
    "epsilon",
    "execution_device",
    "floating_dtype",
    "has_part_of_weights",
    "plain_model",
    "raw_bytes",
    "unwrap",
    "weight_of",
    "weight_offset",
]

# Modules and class names of modules and weights that are shared out among processes. A class that was not imported has
# no instances.
_SHARED_MODULES = (
    ("torch.distributed.fsdp", "FullyShardedDataParallel"),
    ("torch.distributed.fsdp", "FSDPModule"),
    ("transformers.distributed.pipeline_parallel", "PipelineIdentityLayer"),
)
_SHARED_WEIGHTS = (("torch.distributed.tensor", "DTensor"),)
_EPSILONS = ("variance_epsilon", "eps", "epsilon", "norm_eps")


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside the wrapper that ``torch.compile(module)`` returns; other modules as they are."""
    wrapper = _compilation_wrapper()
    while isinstance(module, wrapper):
        module = module._orig_mod
    return module


@cache
def _compilation_wrapper() -> type[Any]:
    # Looked up at the first use, because it imports the compiler; and once, because unwrap runs for every site.
    return torch._dynamo.eval_frame.OptimizedModule


def plain_model(model: Any) -> nn.Module:
    """The transformers model in a compilation wrapper or a PEFT model whose adapters lie inside it.

    Raises:
        TypeError: not a module.
        UnsupportedModelError: a wrapper that does more than call the model; a model of which each process has a part.
    """
    if not isinstance(model, nn.Module):
        inner = "; pass its .model" if isinstance(getattr(model, "model", None), nn.Module) else ""
        raise TypeError(f"model is a {type(model).__name__}; expected a model of transformers{inner}")
    found: nn.Module = unwrap(model)
    if hasattr(found, "get_base_model") and hasattr(found, "peft_config"):
        active = getattr(found, "active_peft_config", None)
        if getattr(active, "is_prompt_learning", False):
            raise UnsupportedModelError(
                f"{type(found).__name__} puts tokens of its own before every prompt; unwrap it with "
                "model.get_base_model() to leave them out"
            )
        return plain_model(found.get_base_model())  # type: ignore[operator]
    _refuse_sharded(found)
    inside = getattr(found, "module", None)
    # A wrapper may give out the attributes of the model inside as its own; its class still is none of transformers.
    of_transformers = hasattr(type(found), "config_class")
    if isinstance(inside, nn.Module) and not of_transformers and hasattr(unwrap(inside), "config"):
        raise UnsupportedModelError(
            f"{type(found).__name__} runs copies or parts of the model, which cannot be read or edited in one place; "
            "pass the model inside: model.module"
        )
    return found


def _refuse_sharded(model: nn.Module) -> None:
    """Raise for a model whose states are not whole in every process.

    Tensor parallelism leaves states whole, because it shares out only the matrices between two states. Where norms are
    shared out too, so are the states.
    """
    for path, module, weight in _shared_out(model):
        vector = getattr(module, weight).dim() < 2 if weight else True
        if not vector or (weight and (module._modules or isinstance(module, nn.Linear))):
            continue
        raise UnsupportedModelError(
            f"{f'{path}.{weight}'.strip('.') or type(model).__name__} is shared out among processes (FSDP, pipeline or "
            "sequence parallelism), so that no process has whole states; take a model that is not. "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
            "options=StateDictOptions(full_state_dict=True)) collects the weights for it"
        )


def has_part_of_weights(model: nn.Module) -> bool:
    """Whether this process has only a part of some weight."""
    return next(_shared_out(plain_model(model)), None) is not None


def _shared_out(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """What is shared out among processes: path, module and name of the weight, which is empty for the whole module.

    Without a process group nothing is, and the model is not searched.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    modules, weights = _imported(_SHARED_MODULES), _imported(_SHARED_WEIGHTS)
    for path, module in model.named_modules():
        in_parts = isinstance(module, modules)
        if in_parts:
            yield path, module, ""
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            if isinstance(tensor, weights):
                yield path, module, name


def _imported(names: Iterable[tuple[str, str]]) -> tuple[type, ...]:
    """Classes by module and name, of those modules that have been imported."""
    found = (getattr(sys.modules.get(module), name, None) for module, name in names)
    return tuple(kind for kind in found if isinstance(kind, type))


def execution_device(*modules: nn.Module) -> torch.device:
    """The device on which the first of these modules computes whose device is known.

    It is where a module's weights are. Weights that accelerate has offloaded are on the meta device between two calls;
    the hook that loads them has the device as its attribute.

    Raises:
        UnsupportedModelError: no device is known, as for a model made on the meta device and never loaded.
    """
    for module in modules:
        for tensor in _tensors(module):
            if not tensor.is_meta:
                return tensor.device
        for hook in chain.from_iterable(map(_hooks, module.modules())):
            device = getattr(hook, "execution_device", None)
            if device is not None:
                return torch.device(device)
    if any(tensor.is_meta for module in modules for tensor in _tensors(module)):
        raise UnsupportedModelError(
            f"the weights of {type(modules[0]).__name__} are on the meta device, and nothing brings them in; "
            "load the model's weights, or offload them with accelerate"
        )
    return torch.device("cpu")


def floating_dtype(*modules: nn.Module) -> torch.dtype:
    """Dtype of the first floating-point weight of these modules; quantised ones do not show the dtype of the states."""
    found = (tensor.dtype for module in modules for tensor in _tensors(module) if tensor.is_floating_point())
    return next(found, torch.get_default_dtype())


def weight_of(norm: nn.Module, name: str) -> Tensor | None:
    """A parameter of a norm, None if it has none; loaded where accelerate has offloaded it.

    Raises:
        UnsupportedModelError: it has no values.
    """
    weight = getattr(norm, name, None)
    if not isinstance(weight, Tensor) or not weight.is_meta:
        return weight if isinstance(weight, Tensor) else None
    for hook in _hooks(norm):
        kept = getattr(hook, "weights_map", None)
        if kept is not None and name in kept:
            offloaded: Tensor = kept[name]
            return offloaded.to(execution_device(norm))
    raise UnsupportedModelError(
        f"{type(norm).__name__}.{name} is on the meta device, and nothing brings it in; load the model's weights"
    )


def epsilon(norm: nn.Module, preferred: str, path: str) -> float:
    """The epsilon of a norm, also of one that a library of kernels has put in the place of the model's own.

    Args:
        norm: the module.
        preferred: the attribute that is looked at before the usual ones.
        path: of the norm, for messages.

    Raises:
        UnsupportedModelError: it has no attribute of a known name, or the norm contains other modules.
    """
    # torch keeps parametrisations of a module's own weight in a child of that name.
    if norm._modules and any(name != "parametrizations" for name, _ in norm.named_children()):
        raise UnsupportedModelError(
            f"{path} is a {type(norm).__name__}, which wraps the norm; merge what it adds into the model, as "
            "merge_and_unload() of PEFT does"
        )
    for name in (preferred, *_EPSILONS):
        found = getattr(norm, name, None)
        if type(found) is float:
            return found
        if isinstance(found, Number) and not isinstance(found, bool | complex):
            return float(found)  # type: ignore[arg-type]
    if isinstance(norm, nn.RMSNorm):  # None stands for the epsilon of the states' dtype
        return torch.finfo(floating_dtype(norm)).eps
    raise UnsupportedModelError(
        f"{path} is a {type(norm).__name__} without an epsilon ({', '.join(_EPSILONS)}): it is not the norm that "
        "this model came with. Take the model as transformers loads it"
    )


def weight_offset(norm: nn.Module, usual: float) -> float:
    """What a norm adds to its weight: its attribute ``offset``, as Liger's norms have it, otherwise ``usual``."""
    # Not by Module.__getattr__, which builds an error message for every name that is missing.
    said = vars(norm).get("offset", getattr(type(norm), "offset", None))
    return float(said) if isinstance(said, (int, float)) else usual


def raw_bytes(value: Any, samples: int) -> Iterator[bytes]:
    """Bytes that stand for an entry of a state dict: dtype, shape and some values of a tensor, the same in every run.

    Quantised weights may be tensors of other classes, and modules may keep objects of any type as extra state.
    """
    if isinstance(value, Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield from _tensor_bytes(value, samples)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield str(key).encode()
            yield from raw_bytes(value[key], samples)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from raw_bytes(item, samples)
    elif isinstance(value, bytes | bytearray):
        yield bytes(value)
    elif isinstance(value, io.BytesIO):
        yield value.getvalue()
    elif value is None or isinstance(value, str | Number | torch.dtype | torch.device):
        yield repr(value).encode()
    elif isinstance(value, torch.ScriptObject) and hasattr(value, "unpack"):
        yield from raw_bytes(value.unpack(), samples)
    else:
        yield type(value).__qualname__.encode()  # its repr may contain an address, which differs between runs


def _tensor_bytes(tensor: Tensor, samples: int) -> Iterator[bytes]:
    tensor = tensor.detach()
    if hasattr(tensor, "__tensor_flatten__"):
        names, context = tensor.__tensor_flatten__()
        yield from raw_bytes([getattr(tensor, name) for name in names], samples)
        yield from raw_bytes(context, samples)
    elif tensor.is_quantized:
        yield from raw_bytes(tensor.int_repr(), samples)
        yield str(tensor.qscheme()).encode()
        per_tensor = tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
        scales = (tensor.q_scale(),) if per_tensor else (tensor.q_per_channel_scales(), tensor.q_per_channel_axis())
        yield from raw_bytes(scales, samples)
    elif tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()
        yield from raw_bytes((tensor.indices(), tensor.values()), samples)
    elif tensor.layout is not torch.strided or tensor.is_meta:
        yield b""  # a weight that is offloaded has no values here; its name and shape are hashed
    else:
        flat = tensor.reshape(-1)
        picked = flat[:: max(1, flat.numel() // samples)].contiguous().cpu()
        yield picked.view(torch.uint8).numpy().tobytes()


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _hooks(module: nn.Module) -> list[Any]:
    """The hooks of accelerate on one module; several may be joined in one."""
    hook = getattr(module, "_hf_hook", None)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
