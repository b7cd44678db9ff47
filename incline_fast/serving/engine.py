"""The plugin's part of the engine: workers with edited norms, resident maps, and the keys of cached prefixes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from incline_fast.serving.catalog import content_hash
from incline_fast.serving.frontend import settings_of
from incline_fast.serving.request import Edit, edit_of
from incline_fast.serving.worker import WorkerEdits, attach

__all__ = ["Residency", "arrived", "edited_worker", "initialized", "managing", "receiving", "salted"]


def edited_worker(original: Callable[..., None]) -> Callable[..., None]:
    """``WorkerBase.__init__``: this worker edits its model as soon as it has loaded it.

    The worker itself is changed, not its class, which differs from platform to platform and may not be imported yet.
    """

    def __init__(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        original(self, vllm_config, *args, **kwargs)
        settings = settings_of(vllm_config)
        if settings is None:
            return
        load_model, warm_up = self.load_model, self.compile_or_warm_up_model

        def load_and_edit(*args: Any, **kwargs: Any) -> Any:
            result = load_model(*args, **kwargs)
            self.incline_edits = _edit_model(self, vllm_config)
            return result

        def warm_up_and_check(*args: Any, **kwargs: Any) -> Any:
            result = warm_up(*args, **kwargs)
            self.incline_edits.check(lambda count: _dummy_states(self.model_runner, count))
            _load_first(self.incline_edits, settings[0])
            return result

        self.load_model, self.compile_or_warm_up_model = load_and_edit, warm_up_and_check
        self.incline_load = lambda *args: self.incline_edits.load(*args)
        self.incline_contents = lambda: self.incline_edits.bank.contents()

    return __init__


def _edit_model(worker: Any, vllm_config: Any) -> WorkerEdits:
    config, layout = settings_of(vllm_config)
    runner = worker.model_runner
    edits = WorkerEdits(
        runner.get_model(),
        vllm_config.model_config.hf_text_config,
        config,
        layout,
        vllm_config.scheduler_config.max_num_batched_tokens,
        vllm_config.model_config.dtype,
        worker.device,
    )
    attach(worker, edits)
    return edits


def _load_first(edits: WorkerEdits, config: Any) -> None:
    files = config.files()
    contents = {name: content_hash(path) for name, path in files.items()}
    for name, path in files.items():
        problem = edits.load(str(path), contents[name], set(contents.values()))
        if problem:
            raise ValueError(f"the map {name!r} cannot be loaded: {problem}")


def _dummy_states(runner: Any, count: int) -> Tensor:
    """The last hidden states of a step without requests, whose attention reads an empty cache."""
    states: Tensor = runner._dummy_run(count, force_attention=True)[0]
    return states[:count]


class Residency:
    """Which alignments an engine's workers hold, and which requests are on their way to its scheduler.

    Requests are looked at in a thread that receives them, maps are loaded in the engine's own: the lock keeps a map
    from being unloaded between the check of a request and its arrival in the scheduler.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        self.lock = threading.Lock()
        self.contents = set(contents)
        self.arriving: Counter[str] = Counter()

    def in_use(self, scheduler: Any) -> set[str]:
        """Contents that arriving, queued and running requests need."""
        edits = map(_edit, scheduler.requests.values())
        return {edit.content for edit in edits if edit is not None} | set(+self.arriving)


def _edit(request: Any) -> Edit | None:
    parameters = request.sampling_params
    return None if parameters is None else edit_of(parameters.extra_args)


def initialized(original: Callable[..., Any]) -> Callable[..., Any]:
    """``EngineCore._initialize_kv_caches``, after which the workers are ready: what they hold is recorded.

    ``EngineCore.__init__`` cannot be changed in its place: it loads the plugins, so that it is running by then.
    """

    def _initialize_kv_caches(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, vllm_config, *args, **kwargs)
        if settings_of(vllm_config) is not None:
            self.incline_residency = Residency(self.model_executor.collective_rpc("incline_contents")[0])
        return result

    return _initialize_kv_caches


def managing(original: Callable[..., Any]) -> Callable[..., Any]:
    """``EngineCore.collective_rpc``: ``incline_load`` keeps the maps that requests still need or that have a name."""

    def collective_rpc(self: Any, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None) -> Any:
        residency: Residency | None = getattr(self, "incline_residency", None)
        if method != "incline_load" or residency is None:
            return original(self, method, timeout, args, kwargs)
        path, content, named = args
        with residency.lock:
            keep = {*named, *residency.in_use(self.scheduler)}
            problems = original(self, method, timeout, (path, content, sorted(keep)), kwargs)
            residency.contents = set(original(self, "incline_contents")[0])
        return problems

    return collective_rpc


def receiving(original: Callable[..., Any]) -> Callable[..., Any]:
    """``EngineCore.preprocess_add_request``: a map can be unloaded between a request's admission and its arrival here.

    An exception here ends the request, not the engine.
    """

    def preprocess_add_request(self: Any, request: Any) -> Any:
        edit = _edit(request)
        if edit is None:
            return original(self, request)
        residency: Residency | None = getattr(self, "incline_residency", None)
        if residency is None:
            raise ValueError(f"request {request.request_id} names a map, and this engine has none")
        with residency.lock:
            if edit.content not in residency.contents:
                raise ValueError(f"the map of request {request.request_id} was unloaded before the request arrived")
            result = original(self, request)
            residency.arriving[edit.content] += 1
        return result

    return preprocess_add_request


def arrived(original: Callable[..., None]) -> Callable[..., None]:
    """``EngineCore.add_request``: from here on the scheduler knows the request."""

    def add_request(self: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        original(self, request, *args, **kwargs)
        edit = _edit(request)
        if edit is not None:
            with self.incline_residency.lock:
                self.incline_residency.arriving[edit.content] -= 1

    return add_request


def salted(original: Callable[..., Any]) -> Callable[..., Any]:
    """``generate_block_hash_extra_keys``: a block with an edited position is shared with equal edits only.

    The hash of a block contains that of the block before it, so all later ones are told apart too; blocks that end
    before the first edited position are shared with plain requests.
    """

    def generate_block_hash_extra_keys(request: Any, start: int, end: int, start_mm_idx: int) -> Any:
        keys, next_mm_idx = original(request, start, end, start_mm_idx)
        edit = _edit(request)
        if edit is None or end <= edit.begin(request.num_prompt_tokens):
            return keys, next_mm_idx
        return (*(keys or ()), ("incline", edit.salt())), next_mm_idx

    return generate_block_hash_extra_keys
