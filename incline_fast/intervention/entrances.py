"""The ways into an edited model: each forward pass is announced to the edited sites, whichever way it comes.

For the time of an intervention the model, its backbone and their compilation wrappers have subclasses of their classes,
whose ``__call__`` and ``forward`` make the :class:`ForwardPass` that the sites read. The outermost of them does so, in
plain Python, so that compiled code contains the edits and no Python that would break its graph; further inside the pass
only notes how far it has come. A pass that begins inside another one (a hook that calls the model) is one of its own.

``generate`` decodes through ``_sample`` or ``_beam_search``, which transformers looks up in the class of the model.
There a generation begins and ends for us, so that it does not matter how generate was reached: by a bound method saved
before the intervention, ``GenerationMixin.generate(model, ...)`` or an override.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from incline_fast.intervention.continuous_batching import Requests, edited_requests, watched_manager
from incline_fast.intervention.forward_pass import AtWork, Control, ForwardPass, Generation
from incline_fast.intervention.generation_modes import refuse_generation_modes
from incline_fast.intervention.mixture import RowSettings
from incline_fast.intervention.positions import Positions, SpecialTokens, read_call, select
from incline_fast.intervention.taps import InterventionError, refuse_copy, with_class
from incline_fast.models.architectures import Architecture, unwrap

__all__ = ["Calls", "Entrance", "by_name", "entrances", "outside_compiled_code"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Methods that run a generation's forward passes, one prompt and then single tokens.
_DECODING = ("_sample", "_beam_search")


def outside_compiled_code(function: Callable[_P, _T], recursive: bool = True) -> Callable[_P, _T]:
    """Decorator: ``torch.compile`` breaks its graph here and runs the function as plain Python."""
    disabled: Callable[_P, _T] = torch.compiler.disable(function, recursive=recursive)  # type: ignore[no-untyped-call]
    return disabled


def by_name(module: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """A function that turns the arguments of ``module.forward`` into keyword arguments."""
    names = _parameters(type(module).forward)
    return lambda args, kwargs: {**dict(zip(names, args, strict=False)), **kwargs}


@lru_cache(maxsize=64)
def _parameters(method: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(method).parameters)[1:]


class Calls:
    """Decides for every forward pass of one model what is edited in it.

    A pass is a prompt when it is the first of a ``generate``, when nothing is in the cache yet, when it has more than
    one token, or when :meth:`expect_prompt` said so; otherwise it is a decode step.
    """

    def __init__(
        self,
        architecture: Architecture,
        control: Control,
        positions: Positions,
        rows: RowSettings | None,
        clone_embeddings: bool,
        clean: bool,
        after: Callable[[ForwardPass], None] | None,
    ) -> None:
        self.control = control
        self.at_work = AtWork()
        self._positions = positions
        self.rows = rows
        self._clone_embeddings = clone_embeddings
        self._clean = clean
        self._after = after
        self._requests: list[Requests] = []
        self._tokens = SpecialTokens.of(architecture)

    def expect_prompt(self) -> None:
        """The next forward pass of this thread is a prompt, whatever it looks like."""
        self.control.declared = True

    def run(
        self, entrance: Entrance, method: Callable[..., Any], inner: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """``method(module, *args, **kwargs)`` as part of the pass under way, or as a new pass.

        Args:
            entrance: which module was called.
            method: the plain method.
            inner: number of this way in, the larger the further inside.
            args, kwargs: of the call.
        """
        running = self.control.running
        if running is not None and running.entrance < inner:
            running.entrance = inner
            return method(entrance.module, *args, **kwargs)
        return self._new_pass(entrance, method, inner, args, kwargs)

    @functools.partial(outside_compiled_code, recursive=False)
    def _new_pass(
        self, entrance: Entrance, method: Callable[..., Any], inner: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        control = self.control
        around = control.running
        if not self.at_work.enter():
            # Another thread may still be putting the norms back; in a pass without rows they edit nothing.
            control.running = ForwardPass(entrance=inner)
            try:
                return method(entrance.module, *args, **kwargs)
            finally:
                control.running = around
        try:
            arguments = entrance.by_name(args, kwargs)
            control.running = running = self._announced(arguments)
            running.entrance = inner
            output = method(entrance.module, **arguments)
            if self._after is not None and running.rows is not None:
                self._after(running)
            return output
        finally:
            control.running = around
            self.at_work.exit()

    @contextmanager
    def generation(self, config: Any = None) -> Iterator[None]:
        """A generation is under way; its first forward pass is the prompt.

        Args:
            config: the generation config with every setting of this generation.
        """
        if not self.at_work.enter():
            yield
            return
        generations = self.control.generations
        try:
            if config is not None:
                refuse_generation_modes({}, [config])
            generations.append(Generation())
            self.control.declared = False
            try:
                yield
            finally:
                generations.pop()
        finally:
            self.at_work.exit()

    @contextmanager
    def continuous_batching(self) -> Iterator[Requests | None]:
        """Requests are answered by a thread of transformers; None: on the plain model.

        Raises:
            InterventionError: the intervention is one that needs a cache of its own.
        """
        if not self.at_work.enter():
            yield None
            return
        around = self.control.requests
        try:
            if self._clean:
                raise InterventionError(
                    "mode='clean' runs prompts twice, which a paged cache cannot; use mode='online'"
                )
            requests = Requests(self._positions, self._tokens.bos, self.rows)
            self._requests.append(requests)
            self.control.requests = requests
            try:
                yield requests
            finally:
                self._requests.remove(requests)
        finally:
            self.control.requests = around
            self.at_work.exit()

    def _announced(self, arguments: dict[str, Any]) -> ForwardPass:
        """The pass that is about to run; an argument is replaced where the edits would write to it."""
        cache = arguments.get("cache")
        for requests in tuple(self._requests):
            if requests.own(cache):
                return requests.announced(arguments)
        call = read_call(arguments)
        prompt_length = self._prompt_length(call.length, call.past)
        if self._positions == "last" and prompt_length == 0:
            return ForwardPass()
        per_row = self._expanded(call.batch)
        active = None if per_row is None else per_row.active
        rows = select(call, self._positions, prompt_length, tokens=self._tokens)
        untouched = False
        if active is not None and rows is not None:
            if rows.batch is None and bool(active.any()):  # a block stays one: its rows with alpha = 0 have no map
                untouched = True
            else:
                rows = select(call, self._positions, prompt_length, tokens=self._tokens, active=active)
        if rows is None:
            return ForwardPass()
        embeddings = arguments.get("inputs_embeds")
        if self._clone_embeddings and embeddings is not None:
            # The first site edits the embedding output in place; the caller's tensor is not ours.
            arguments["inputs_embeds"] = embeddings.clone()
        if per_row is None:
            return ForwardPass(rows)
        picked = per_row.each(lambda per_row: rows.per_token(per_row, call.length))
        return ForwardPass(rows, picked.alpha, picked.beta, picked.maps, untouched)

    def _prompt_length(self, length: int, past: int) -> int:
        control = self.control
        if control.generations:
            generation = control.generations[-1]
            if generation.prompt is None:
                generation.prompt, control.declared = length, False
                return length
            if length == 1:  # without a cache, a later pass has the prompt and an answer in it: two tokens at least
                return 0
            if past == 0 and length > generation.prompt:  # no cache: prompt and answer run again at every step
                return generation.prompt
            raise RuntimeError(
                f"generate ran a pass of {length} tokens after {past} cached ones; only one prompt followed by single "
                "tokens can be edited (no chunked prefill, no assisted or speculative decoding)"
            )
        if control.declared:
            control.declared = False
            return length
        return 0 if past > 0 and length == 1 else length

    def _expanded(self, batch: int) -> RowSettings | None:
        """What is done with each row of this pass: beams and several sequences per prompt repeat each prompt's row."""
        rows = self.rows
        if rows is None:
            return None
        count = rows.count
        repeats, rest = divmod(batch, count)
        if rest or repeats == 0 or (repeats > 1 and not self.control.generations):
            raise ValueError(f"{rows.name} has {count} values; this forward pass has {batch} rows")
        return rows if repeats == 1 else rows.each(lambda per_row: per_row.repeat_interleave(repeats))


class Entrance:
    """A module through which a forward pass can enter the model, and the way back to its own class.

    Attributes:
        module: the LM, its backbone, or a compilation wrapper of one of them.
        calls: who is told of a pass.
        number: 0 for the outermost; ``__call__`` is way ``2 number`` into the model, ``forward`` way ``2 number + 1``.
        clean: what to run instead of the plain ``forward``, None: the plain one.
    """

    def __init__(self, module: nn.Module, calls: Calls, number: int) -> None:
        self.module = module
        self.calls = calls
        self.number = number
        self.by_name = by_name(unwrap(module))
        self.clean: Callable[..., Any] | None = None
        self._own_forward = vars(module).get("forward")
        self._undo = with_class(module, _entered)
        self._class = type(module)
        module.__dict__["_incline_fast_entrance"] = self

    @property
    def replaced(self) -> bool:
        """Whether ``forward`` is not the class's: compiled on its own, or wrapped by another library."""
        return self._own_forward is not None or self.module._compiled_call_impl is not None

    def intact(self) -> bool:
        """Whether a pass still enters here."""
        return type(self.module) is self._class

    def remove(self) -> None:
        """The module has its own class again."""
        self._undo()
        self.module.__dict__.pop("_incline_fast_entrance", None)


@lru_cache(maxsize=64)
def _entered(cls: type) -> type:
    """The subclass of a model's class whose passes and generations are announced."""
    forward_of_class: Any = cls.forward  # type: ignore[attr-defined]

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        plain: Any = cls.__call__
        entrance: Entrance | None = self.__dict__.get("_incline_fast_entrance")
        if entrance is None:  # looked up during an intervention that another thread has left since
            return plain(self, *args, **kwargs)
        method = entrance.clean if entrance.clean is not None and entrance.replaced else plain
        return entrance.calls.run(entrance, method, 2 * entrance.number, args, kwargs)

    @functools.wraps(forward_of_class)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        entrance: Entrance | None = self.__dict__.get("_incline_fast_entrance")
        if entrance is None:  # as above
            return forward_of_class(self, *args, **kwargs)
        method = entrance.clean if entrance.clean is not None and not entrance.replaced else forward_of_class
        return entrance.calls.run(entrance, method, 2 * entrance.number + 1, args, kwargs)

    names = {"__call__": call, "forward": forward, "__reduce_ex__": refuse_copy}
    names |= {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    if hasattr(cls, "generate"):
        names |= _generation_methods(cls)
    return type(cls.__name__, (cls,), names)


def _generation_methods(cls: Any) -> dict[str, Any]:
    names: dict[str, Any] = {"generate": _generate(cls)}
    names |= {name: _decoding(getattr(cls, name)) for name in _DECODING if hasattr(cls, name)}
    if hasattr(cls, "continuous_batching_context_manager"):  # generate_batch goes through it
        names["continuous_batching_context_manager"] = edited_requests(
            cls.continuous_batching_context_manager, _begin_requests
        )
        names["init_continuous_batching"] = watched_manager(cls.init_continuous_batching, _requests_begun)
    for name in ("_assisted_decoding", "_validate_generation_mode", "_extract_generation_mode_kwargs"):
        if hasattr(cls, name):
            names[name] = _checked(getattr(cls, name))
    return names


@contextmanager
def _begin_requests(model: Any) -> Iterator[Requests | None]:
    entrance: Entrance | None = model.__dict__.get("_incline_fast_entrance")
    if entrance is None:  # looked up during an intervention that is over
        yield None
        return
    with entrance.calls.continuous_batching() as requests:
        yield requests


def _requests_begun(model: Any) -> Requests | None:
    entrance: Entrance | None = model.__dict__.get("_incline_fast_entrance")
    requests: Requests | None = None if entrance is None else entrance.calls.control.requests
    return None if requests is None or requests.watched else requests


def _generate(cls: Any) -> Callable[..., Any]:
    parameters = tuple(inspect.signature(cls.generate).parameters)[1:]

    @functools.wraps(cls.generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        entrance: Entrance | None = self.__dict__.get("_incline_fast_entrance")
        if entrance is None or not entrance.calls.at_work.enter():
            return cls.generate(self, *args, **kwargs)
        calls = entrance.calls
        try:
            given = {**dict(zip(parameters, args, strict=False)), **kwargs}
            refuse_generation_modes(given, [given.get("generation_config"), getattr(self, "generation_config", None)])
            return cls.generate(self, *args, **kwargs)
        finally:
            calls.at_work.exit()

    return generate


def _decoding(method: Callable[..., Any]) -> Callable[..., Any]:
    """A decoding loop: a generation from its first pass to its last."""

    @functools.wraps(method)
    def decode(self: Any, *args: Any, **kwargs: Any) -> Any:
        entrance = self.__dict__.get("_incline_fast_entrance")
        if entrance is None:  # looked up during an intervention that is over
            return method(self, *args, **kwargs)
        with entrance.calls.generation(kwargs.get("generation_config")):
            return method(self, *args, **kwargs)

    return decode


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    """A step of generate that knows all settings of the generation, whichever way it was reached."""
    names = tuple(inspect.signature(method).parameters)  # once per class: it takes as long as three edits

    @functools.wraps(method)
    def check_and_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, (self, *args), strict=False)), **kwargs}
        known = {**given, **(given.get("generation_mode_kwargs") or {})}
        refuse_generation_modes(known, [given.get("generation_config")])
        return method(self, *args, **kwargs)

    return check_and_run


def entrances(model: nn.Module, architecture: Architecture) -> list[nn.Module]:
    """Modules through which a forward pass can enter the model, outermost first."""
    inner, outer = architecture.backbone, architecture.model
    wrappers = []
    for module in outer.modules():
        if module is inner:  # its wrappers hold it, so they come first
            break
        if unwrap(module) is inner:
            wrappers.append(module)
    return list(dict.fromkeys([model, outer, *wrappers, inner]))
