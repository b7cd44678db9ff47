"""Announce every forward pass of a model to its edited sites: which rows it edits, and whether it is a prompt.

The bookkeeping happens in the outermost call - the LM, its ``torch.compile`` wrapper, or the backbone when that is
called on its own - so that compiled code contains the edits and no Python that would break its graph.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from incline_fast.intervention.positions import Positions, Rows, read_call, select
from incline_fast.intervention.site_edits import Control
from incline_fast.models.architectures import Architecture

__all__ = ["Calls", "Patch", "by_name", "outside_compiled_code"]

_P = ParamSpec("_P")
_T = TypeVar("_T")

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


def outside_compiled_code(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorator: ``torch.compile`` breaks its graph here and runs the function as plain Python."""
    disabled: Callable[_P, _T] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return disabled


class Patch:
    """An attribute of an object replaced until :meth:`undo`."""

    def __init__(self, owner: Any, name: str, value: Callable[..., Any]) -> None:
        self.owner, self.name, self.value = owner, name, value
        self._own = name in vars(owner)
        self._before = getattr(owner, name)
        setattr(owner, name, value)

    def intact(self) -> bool:
        """Whether the replacement is still there."""
        return vars(self.owner).get(self.name) is self.value

    def undo(self) -> None:
        """Put back what was there, or remove the attribute if the object had it from its class."""
        if self._own:
            setattr(self.owner, self.name, self._before)
        elif self.name in vars(self.owner):
            delattr(self.owner, self.name)


def by_name(module: nn.Module) -> Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]:
    """A function that turns the arguments of ``module.forward`` into keyword arguments."""
    names = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return lambda args, kwargs: {**dict(zip(names, args, strict=False)), **kwargs}


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
        row_alpha: Tensor | None,
        interpolate: bool,
        clone_embeddings: bool,
        after: Callable[[Rows, Tensor | None], None] | None,
    ) -> None:
        self._control = control
        self._positions = positions
        self._row_alpha = row_alpha
        self._interpolate = interpolate
        self._clone_embeddings = clone_embeddings
        self._after = after
        self._bos = architecture.bos_token_ids
        self._generating = False
        self._generated_prompt: int | None = None
        self._declared = False

    def expect_prompt(self) -> None:
        """The next forward pass is a prompt, whatever it looks like."""
        self._declared = True

    def announced(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        """``forward`` with its rows chosen beforehand, unless an outer module has done so."""
        name = by_name(module)
        control = self._control

        @functools.wraps(forward)
        def announcing_forward(*args: Any, **kwargs: Any) -> Any:
            if control.armed:
                return forward(*args, **kwargs)
            kwargs = self._arm(name(args, kwargs))
            rows, alpha = control.rows, control.alpha
            try:
                output = forward(**kwargs)
            finally:
                control.disarm()
            if self._after is not None and rows is not None:
                self._after(rows, alpha)
            return output

        return announcing_forward

    def generating(self, generate: Callable[..., Any], settings: Sequence[Any]) -> Callable[..., Any]:
        """``model.generate`` whose first forward pass is the prompt, and which refuses modes that cannot be edited.

        Args:
            generate: the bound method.
            settings: generation configs that apply where an argument says nothing.
        """

        names = tuple(inspect.signature(generate).parameters)

        @functools.wraps(generate)
        def announcing_generate(*args: Any, **kwargs: Any) -> Any:
            if self._generating:
                raise RuntimeError("generate was called during generate; nested generation cannot be edited")
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            refuse_generation_modes(given, [given.get("generation_config"), *settings])
            self._generating, self._generated_prompt = True, None
            try:
                return generate(*args, **kwargs)
            finally:
                self._generating = False

        return announcing_generate

    @outside_compiled_code
    def _arm(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Set up ``control`` for one forward pass; returns the arguments to run it with."""
        control = self._control
        call = read_call(arguments)
        alpha = self._expanded_alpha(call.batch)
        rows = select(
            call,
            self._positions,
            self._prompt_length(call.length, call.past),
            bos_token_ids=self._bos,
            active=None if alpha is None or bool((alpha != 0).all()) else alpha != 0,
        )
        control.alpha = alpha
        control.beta = 1 - alpha if alpha is not None and self._interpolate else None
        control.rows = rows
        control.armed = True
        embeddings = arguments.get("inputs_embeds")
        if self._clone_embeddings and rows is not None and embeddings is not None:
            # The first site edits the embedding output in place; the caller's tensor is not ours.
            arguments["inputs_embeds"] = embeddings.clone()
        return arguments

    def _prompt_length(self, length: int, past: int) -> int:
        if self._generating:
            if self._generated_prompt is None:
                self._generated_prompt, self._declared = length, False
                return length
            if past > 0 and length == 1:
                return 0
            if past == 0 and length > self._generated_prompt:  # no cache: prompt and answer run again at every step
                return self._generated_prompt
            raise RuntimeError(
                f"generate ran a pass of {length} tokens after {past} cached ones; only one prompt followed by single "
                "tokens can be edited (no chunked prefill, no assisted or speculative decoding)"
            )
        if self._declared:
            self._declared = False
            return length
        return 0 if past > 0 and length == 1 else length

    def _expanded_alpha(self, batch: int) -> Tensor | None:
        """alpha per row of this pass: beams and several sequences per prompt repeat each prompt's value."""
        alpha = self._row_alpha
        if alpha is None:
            return None
        repeats, rest = divmod(batch, alpha.numel())
        if rest or repeats == 0 or (repeats > 1 and not self._generating):
            raise ValueError(f"alpha has {alpha.numel()} values; this forward pass has {batch} rows")
        return alpha.repeat_interleave(repeats)


def refuse_generation_modes(arguments: dict[str, Any], configs: Sequence[Any]) -> None:
    """Raise for generation modes whose forward passes are not a prompt followed by single tokens.

    Raises:
        ValueError: names the setting, its value and the mode.
    """

    def setting(name: str) -> Any:
        known = (arguments.get(name), *(getattr(config, name, None) for config in configs if config is not None))
        return next((value for value in known if value is not None), None)

    for name, (mode, neutral) in REFUSED_SETTINGS.items():
        value = setting(name)
        if value is not None and value is not False and value not in neutral:
            shown = type(value).__name__ if isinstance(value, nn.Module) else repr(value)
            raise ValueError(f"{name}={shown} asks generate for {mode}, which intervene does not support")
    if setting("cache_implementation") == "paged":
        raise ValueError("cache_implementation='paged' asks generate for continuous batching; it cannot be edited")
