"""Continuous batching: which tokens of its passes end a prompt, and whose they are.

``generate_batch`` of transformers packs many requests into one row: whole prompts, pieces of long ones, and single
tokens of requests that are being answered. The arguments of such a pass do not tell a prompt's last piece from a decode
step. The requests do: each knows how long its prompt is, and the positions say how far it has come.

A request whose keys and values were thrown away for want of memory runs its prompt and its answer again, and the same
tokens of it are edited again. Prefixes are not shared during an intervention: a longer prompt with the same beginning
has another last token, and must not go on from the edited one.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import transformers
from torch import nn

from incline_fast.intervention.forward_pass import ForwardPass
from incline_fast.intervention.mixture import RowSettings
from incline_fast.intervention.positions import Positions, rows_where
from incline_fast.intervention.taps import InterventionError
from incline_fast.models.architectures import text_config

__all__ = ["Requests", "edited_requests", "watched_manager"]

# Settings of continuous batching under which the model is not called for every pass, or before its requests are known.
_AHEAD = (
    "use_cuda_graph",
    "use_async_batching",
    "varlen_compile_config",
    "decode_compile_config",
    "default_compile_level",
)
_WAIT_S = 30.0
"""How long a pass waits to be told the number of a request that it has already been given."""


class Requests:
    """The requests that one manager of transformers answers while its model is edited.

    Args:
        positions, bos: see :func:`~incline_fast.intervention.positions.select`.
        rows: what is done with the first, second, ... request; None: the same with all of them.
    """

    def __init__(self, positions: Positions, bos: Sequence[int], rows: RowSettings | None) -> None:
        self._positions = positions
        self._bos = frozenset(bos)
        self._rows = rows
        self._manager: Any = None
        self._numbers: dict[str, int] = {}
        self._given = 0
        self._numbered = threading.Condition()

    @property
    def watched(self) -> bool:
        """Whether their manager has been made."""
        return self._manager is not None

    def prepare(self, model: nn.Module, arguments: dict[str, Any]) -> None:
        """Check the arguments of continuous batching and set what must be set while a model is edited.

        Raises:
            InterventionError: a setting under which passes cannot be edited, or leave their block.
            ValueError: settings per row for another number of requests.
        """
        generation = arguments.get("generation_config") or getattr(model, "generation_config", None)
        hints = arguments.get("workload_hints")
        if self._rows is not None and hints is not None:
            count, requests = self._rows.count, hints.num_requests
            requests //= getattr(generation, "num_return_sequences", None) or 1
            if requests != count:
                raise ValueError(f"{self._rows.name} has {count} values; this batch has {requests} requests")
        arguments["continuous_batching_config"] = _config(model, arguments, generation)

    def watch(self, manager: Any) -> None:
        """Number the requests of this manager as they are added."""
        self._manager = manager
        add = manager.add_request
        signature = inspect.signature(add)

        @functools.wraps(add)
        def add_request(*args: Any, **kwargs: Any) -> Any:
            name = signature.bind(*args, **kwargs).arguments.get("request_id")
            number = self._next()
            if name is not None:
                self._number(name, number)
            added = add(*args, **kwargs)
            if name is None and added is not None:
                self._number(added, number)
            return added

        if self._rows is not None:
            manager.add_request = add_request

    def own(self, cache: Any) -> bool:
        """Whether a pass over this paged cache is one of theirs."""
        processor = getattr(self._manager, "batch_processor", None)
        return cache is not None and processor is not None and processor.cache is cache

    def check_done(self) -> None:
        """Raise what ended the thread that runs the passes; transformers logs it and returns what there is."""
        error = self._manager.background_thread_status.fatal_error
        if error is not None:
            raise error
        if self._manager.is_running():
            raise InterventionError("continuous batching did not stop in time; its thread goes on without edits")

    def announced(self, arguments: Mapping[str, Any]) -> ForwardPass:
        """The pass that is about to run.

        Raises:
            RuntimeError: the requests are not those of this pass.
        """
        columns, names = self._chosen(arguments["position_ids"][0].tolist())
        settings = self._rows
        if settings is not None:
            numbers = [self._number_of(name) for name in names]
            active = settings.active
            edited = [True] * settings.count if active is None else active.tolist()
            kept = [i for i, number in enumerate(numbers) if edited[number]]  # the others keep their bits
            columns, numbers = [columns[i] for i in kept], [numbers[i] for i in kept]
        ids = arguments["input_ids"]
        chosen = torch.zeros(1, ids.shape[1], dtype=torch.bool, device=ids.device)
        chosen[0, columns] = True
        rows = rows_where(chosen)
        if rows is None or settings is None:
            return ForwardPass(rows)
        index = torch.tensor(numbers, device=settings.alpha[0].device)
        picked = settings.each(lambda per_row: per_row[index])
        return ForwardPass(rows, picked.alpha, picked.beta, picked.maps)

    def _chosen(self, positions: list[int]) -> tuple[list[int], list[str]]:
        """Columns of the pass that are edited, ascending, and the request of each."""
        columns: list[int] = []
        names: list[str] = []
        start = 0
        for scheduled in self._manager.batch_processor.inputs_and_outputs.requests_in_batch:
            state, count = scheduled.state, scheduled.query_length
            here = range(state.position_offset - count, state.position_offset)
            if positions[start : start + count] != list(here):
                raise RuntimeError(
                    f"request {state.request_id} is at {here}, which are not the positions of its tokens"
                )
            edited = self._edited(state)
            for position in range(max(here.start, edited.start), min(here.stop, edited.stop)):
                columns.append(start + position - here.start)
                names.append(state.request_id)
            start += count
        if start != len(positions):
            raise RuntimeError(f"a pass has {len(positions)} tokens, and its requests {start}; it cannot be edited")
        return columns, names

    def _edited(self, state: Any) -> range:
        """Positions of a request that are edited."""
        # A request that is run again has its first answer behind its prompt.
        length = state._true_initial_tokens or len(state.initial_tokens)
        first = 0 if self._positions == "all" else length - 1
        bos = next((i for i, token in enumerate(state.initial_tokens) if token not in self._bos), length)
        return range(max(first, bos), length if self._positions == "last" else sys.maxsize)

    def _next(self) -> int:
        assert self._rows is not None
        count = self._rows.count
        with self._numbered:
            if self._given == count:
                raise ValueError(f"{self._rows.name} has {count} values; this is request {count + 1}")
            self._given += 1
            return self._given - 1

    def _number(self, name: str, number: int) -> None:
        with self._numbered:
            self._numbers[name] = number
            self._numbered.notify_all()

    def _number_of(self, name: str) -> int:
        """A request may run before the call that adds it has returned its name; copies of it have its number."""
        parent = name.rpartition("__child#")[0]
        with self._numbered:
            if not self._numbered.wait_for(lambda: name in self._numbers or parent in self._numbers, _WAIT_S):
                raise RuntimeError(f"request {name} was not added during the intervention")
            return self._numbers[name if name in self._numbers else parent]


def edited_requests(
    method: Callable[..., AbstractContextManager[Any]],
    begin: Callable[[Any], AbstractContextManager[Requests | None]],
) -> Callable[..., AbstractContextManager[Any]]:
    """``continuous_batching_context_manager`` of an edited model, through which ``generate_batch`` goes as well.

    Args:
        method: of the class.
        begin: for a model, a context in which its managers are watched; it gives None where the model is plain.
    """
    signature = inspect.signature(method)

    @functools.wraps(method)
    @contextmanager
    def manage(self: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        with begin(self) as requests:
            if requests is None:
                with method(self, *args, **kwargs) as manager:
                    yield manager
                return
            given = signature.bind(self, *args, **kwargs)
            given.apply_defaults()
            requests.prepare(self, given.arguments)
            with method(*given.args, **given.kwargs) as manager:
                yield manager
            requests.check_done()

    return manage


def watched_manager(method: Callable[..., Any], watching: Callable[[Any], Requests | None]) -> Callable[..., Any]:
    """``init_continuous_batching`` of an edited model; by itself it makes a manager that outlives the block.

    Args:
        method: of the class.
        watching: for a model, the requests that wait for their manager, None where nothing does.
    """

    @functools.wraps(method)
    def init(self: Any, *args: Any, **kwargs: Any) -> Any:
        requests = watching(self)
        if requests is None:
            raise InterventionError(
                "init_continuous_batching makes a manager that nothing ends with the intervention; use generate_batch "
                "or continuous_batching_context_manager"
            )
        manager = method(self, *args, **kwargs)
        requests.watch(manager)
        return manager

    return init


def _config(model: nn.Module, arguments: Mapping[str, Any], generation: Any) -> Any:
    """The configuration of continuous batching that was asked for, with what an edited model needs."""
    if "continuous_batching_config" not in arguments:
        raise InterventionError(
            f"continuous batching of transformers {transformers.__version__} cannot be told to share no prefixes, and "
            "those of an edited model are not for all; use generate, or transformers 5.23"
        )
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    if arguments.get("persistent_manager") or hasattr(model, "_cached_continuous_batching_manager"):
        raise InterventionError(
            "a persistent manager would carry keys and values of an edited model out of the intervention, or those of "
            "the plain model into it; leave persistent_manager out, and call "
            "model.destroy_cached_continuous_batching_manager() before"
        )
    if not arguments.get("block", True):
        raise InterventionError("block=False leaves requests at work after the intervention; expected block=True")
    given = arguments.get("continuous_batching_config") or getattr(generation, "continuous_batching_config", None)
    config = ContinuousBatchingConfig() if given is None else copy.copy(given)
    asked = {name: getattr(config, name, None) for name in _AHEAD}
    asked["compile_config"] = getattr(text_config(model), "compile_config", None)
    refused = [f"{name}={value}" for name, value in asked.items() if value and value != (False, False)]
    if refused:
        raise InterventionError(
            f"continuous batching with {', '.join(refused)} runs passes that are recorded, compiled or begun ahead of "
            "time, in which nothing can be edited; leave it out"
        )
    config.allow_block_sharing = config.use_cuda_graph = config.use_async_batching = False
    return config
