"""The entry point ``vllm.general_plugins``, which vLLM calls in every process, and all places where vLLM is changed.

Every change does nothing for an engine that was started without maps. The places, of which each is looked for before
any is changed, so that another version of vLLM is refused and not half changed:

    EngineArgs.create_engine_config   reads and checks the configuration, and enters it into the hash of compiled graphs
    InputProcessor.process_inputs     admits requests, or refuses them (HTTP 400)
    WorkerBase.__init__               lets a worker replace its norms and follow its runner's steps
    EngineCore                        loads and unloads maps; refuses requests whose map has gone
    generate_block_hash_extra_keys    tells apart the cached states of edited prompts
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version as installed_version
from typing import Any

from incline_fast.serving.errors import ServingError

__all__ = ["SUPPORTED", "register", "version_problem"]

SUPPORTED = ((0, 32, 0), (0, 33, 0))
"""Versions of vLLM from the first up to, but not including, the second."""

_registered = False


def version_problem(version: str) -> str:
    """Why a version of vLLM cannot be served, or an empty string."""
    numbers = tuple(int(part) if part.isdecimal() else -1 for part in version.partition("+")[0].split(".")[:3])
    if len(numbers) == 3 and SUPPORTED[0] <= numbers < SUPPORTED[1]:
        return ""
    lowest, highest = (".".join(map(str, bound)) for bound in SUPPORTED)
    return (
        f"incline_fast {installed_version('incline-fast')} serves vLLM >= {lowest} and < {highest}, and this is "
        f"{version}. Install one of those, or start without the maps"
    )


def register() -> None:
    """Change vLLM in this process, once."""
    global _registered
    if _registered:
        return
    _registered = True
    from vllm import __version__

    problem = version_problem(__version__)
    _wrap("vllm.engine.arg_utils", "EngineArgs.create_engine_config", functools.partial(_configured, problem))
    if problem:
        return  # an engine that asks for maps is refused by its configuration
    from incline_fast.serving import engine, frontend

    _wrap("vllm.v1.engine.input_processor", "InputProcessor.process_inputs", frontend.admitting)
    _wrap("vllm.v1.worker.worker_base", "WorkerBase.__init__", engine.edited_worker)
    _wrap("vllm.v1.engine.core", "EngineCore._initialize_kv_caches", engine.initialized)
    _wrap("vllm.v1.engine.core", "EngineCore.collective_rpc", engine.managing)
    _wrap("vllm.v1.engine.core", "EngineCore.preprocess_add_request", engine.receiving)
    _wrap("vllm.v1.engine.core", "EngineCore.add_request", engine.arrived)
    _wrap("vllm.v1.core.kv_cache_utils", "generate_block_hash_extra_keys", engine.salted)
    _wrap("vllm.v1.core.block_pool", "generate_block_hash_extra_keys", engine.salted)


def _wrap(module: str, path: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    owner: Any = import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    original = getattr(owner, name, None)
    if original is None:
        raise ServingError(f"vLLM has no {module}.{path}, which incline_fast changes; this version is not supported")
    setattr(owner, name, functools.wraps(original)(wrapper(original)))


def _configured(problem: str, original: Callable[..., Any]) -> Callable[..., Any]:
    from incline_fast.serving.config import KEY, read_config

    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = original(self, *args, **kwargs)
        given = vllm_config.additional_config
        config = read_config(given.get(KEY) if isinstance(given, dict) else None)
        if config is None:
            return vllm_config
        if problem:
            raise ServingError(problem)
        from incline_fast.serving import frontend

        frontend.configure(vllm_config, config)
        return vllm_config

    return create_engine_config
