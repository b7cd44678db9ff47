"""How the modules of a model come to run edits, and the way back.

The module at a site is not replaced. During an intervention its class is a subclass that edits the residual stream
before (or after) the module runs, so that its parameters, hooks, submodules and place in the model do not change.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

from torch import nn

from incline_fast.intervention.forward_pass import Control
from incline_fast.intervention.site_edits import SiteEdit
from incline_fast.models.sites import (
    Site,
    block_output,
    state_argument,
    unwrap,
    with_block_output,
    with_state_argument,
)

__all__ = ["InterventionError", "Places", "Taps", "refuse_copy", "with_class"]


class InterventionError(RuntimeError):
    """An intervention was entered twice, met another one, or found its model changed, copied or still at work."""


def refuse_copy(module: nn.Module, protocol: int = 2) -> NoReturn:
    """``__reduce_ex__`` of a module that is being edited: a copy or pickle of it would be neither plain nor edited."""
    raise InterventionError(
        f"{type(module).__name__} is part of a model that is being edited and cannot be copied or pickled now; do so "
        "outside the with block, or save its state_dict()"
    )


def with_class(module: nn.Module, make: Callable[[type], type]) -> Callable[[], None]:
    """Give a module the class ``make(its class)``; returns what undoes it."""
    # Past Module.__setattr__, which asks first whether it is given a parameter, a module or a buffer.
    before = type(module)
    object.__setattr__(module, "__class__", make(before))

    def undo() -> None:
        object.__setattr__(module, "__class__", before)

    return undo


class Places:
    """Finds modules of a model by path, past compilation wrappers; what several paths begin with is looked up once."""

    def __init__(self, model: nn.Module) -> None:
        self._found: dict[str, nn.Module | None] = {"": unwrap(model)}

    def at(self, path: str) -> nn.Module | None:
        """The module at ``path``, None if there is none."""
        if path not in self._found:
            parent, _, name = path.rpartition(".")
            around = self.at(parent)
            module = None if around is None else around._modules.get(name)
            self._found[path] = None if module is None else unwrap(module)
        return self._found[path]


class Taps:
    """The edits of one module, and the way back.

    Attributes:
        control: what the thread that calls is doing.
        before: the edit of the state that the module reads.
        after: the edit of the state that it returns.
    """

    def __init__(self, module: nn.Module, control: Control) -> None:
        self.module = module
        self.control = control
        self.before: SiteEdit | None = None
        self.after: SiteEdit | None = None
        self._undo = with_class(module, _tapped)
        self._class = type(module)
        module.__dict__["_incline_fast_taps"] = self

    def add(self, edit: SiteEdit) -> None:
        """Edit one more state here."""
        if edit.site.tap not in ("norm", "block_input"):
            self.after = edit
        else:
            self.before = edit

    def sites(self) -> list[Site]:
        """The sites that are edited here."""
        return [edit.site for edit in (self.before, self.after) if edit is not None]

    def intact(self, found: nn.Module | None) -> bool:
        """Whether the module that the model runs in this place now is this one, with its edits."""
        return found is self.module and type(found) is self._class

    def remove(self) -> None:
        """The module has its own class again."""
        self._undo()
        self.module.__dict__.pop("_incline_fast_taps", None)


@lru_cache(maxsize=128)
def _tapped(cls: type) -> type:
    """The subclass of a module's class that edits the residual stream around a call."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        taps = self._incline_fast_taps
        running = taps.control.running
        if running is not None and running.rows is None:  # a pass in which nothing is edited, as a decode step
            return cls.__call__(self, *args, **kwargs)
        before, after = taps.before, taps.after
        if before is not None:
            hidden = state_argument(args, kwargs)
            if before.reads_norm:
                if not before.edit_rows(running, hidden):
                    normed = before.edit_and_normalise(running, self, hidden)
                    if normed is not None:
                        return normed
            else:
                args, kwargs = with_state_argument(args, kwargs, before.edited(running, hidden))
        output = cls.__call__(self, *args, **kwargs)
        return output if after is None else with_block_output(output, after.edited(running, block_output(output)))

    return type(
        cls.__name__,
        (cls,),
        {
            "__call__": call,
            "__reduce_ex__": refuse_copy,
            "__module__": cls.__module__,
            "__qualname__": cls.__qualname__,
            "__doc__": cls.__doc__,
        },
    )
