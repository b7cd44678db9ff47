"""Apply an alignment to a model: ``with intervene(model, alignment, alpha=0.4): model.generate(...)``.

At every selected site, at the selected tokens: ``h <- beta h + alpha (W h + b)`` with ``beta = 1`` (form ``add``, the
intervention of INCLINE, Wang et al., ACL 2025, arXiv 2410.12462, section 3.2) or ``beta = 1 - alpha`` (form
``interpolate``). The edit happens inside the norm that reads the state, so it costs no second pass and no hook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor, nn

from incline_fast.alignment.alignment import Alignment
from incline_fast.intervention.clean import clean_forward
from incline_fast.intervention.forward_calls import Calls, Patch
from incline_fast.intervention.positions import Positions, Rows
from incline_fast.intervention.site_edits import Control, Installed, SiteEdit, backend_for
from incline_fast.intervention.strength import Alpha, row_alpha, site_alpha
from incline_fast.maps import AffineMap
from incline_fast.models.active import ACTIVE
from incline_fast.models.architectures import Architecture, Site, describe, unwrap
from incline_fast.ops import explain

__all__ = ["Intervention", "InterventionError", "Mode", "NonFiniteStateError", "intervene"]

Mode = Literal["online", "clean"]


class InterventionError(RuntimeError):
    """An intervention was entered twice, met another one, or found its model changed."""


class NonFiniteStateError(ArithmeticError):
    """An edited state is infinite or NaN; the message names site, row and alpha."""


def intervene(
    model: nn.Module,
    alignment: Alignment,
    *,
    alpha: Alpha,
    positions: Positions = "last",
    mode: Mode = "online",
    layers: Sequence[int] | None = None,
    check_finite: bool = False,
) -> Intervention:
    """Edit a model's residual stream inside a ``with`` block; the model is exactly as before afterwards.

    Args:
        model: a transformers causal LM or its backbone, compiled or not.
        alignment: the maps; checked against the model.
        alpha: strength. One number; one per site ``{site: alpha}``, which also selects the sites; or one per row of the
            batch, a tensor ``[B]`` (beams and several returned sequences repeat it). Where alpha is 0 nothing is
            edited and the model's bits are its own.
        positions: ``"last"`` - the last token of each prompt (the paper's choice); ``"generated"`` - also every token
            that is decoded; ``"all"`` - every token. Padding is never edited, nor is BOS at the start of a text given
            as ``input_ids``.
        mode: ``"online"`` - one pass; a site's edit is seen by the sites after it. ``"clean"`` - every edited value is
            computed from the unedited run and set, for one more decode-shaped step per prompt.
        layers: sites to edit (0: embedding output, l: output of block l); None: all that the alignment has.
        check_finite: measure every edited state and raise :class:`NonFiniteStateError` after a forward pass in which
            one is not finite; fills ``max_abs`` and ``growth``.

    Outside ``generate``, a forward pass of one token after a non-empty cache is a decode step, any other is a prompt;
    :meth:`Intervention.expect_prompt` says otherwise. Edits are in place and have no gradient. A compiled model is
    compiled anew for every intervention; to run many strengths, give one per row.

    Raises:
        ValueError, TypeError: an argument that is not allowed.
        AlignmentError: the alignment was made for another model.
        UnsupportedModelError: the architecture is not known.
    """
    return Intervention(model, alignment, alpha, positions, mode, layers, check_finite)


class Intervention:
    """What :func:`intervene` returns; edits the model between ``__enter__`` and ``__exit__``.

    Attributes:
        model: as given.
        alpha: selected site -> strength; None where every row of the batch has its own.
        max_abs: site -> largest magnitude written so far, under ``check_finite``.
        growth: site -> largest ``|r'| / |r|`` of an edited state so far, under ``check_finite``.
    """

    def __init__(
        self,
        model: nn.Module,
        alignment: Alignment,
        alpha: Alpha,
        positions: Positions,
        mode: Mode,
        layers: Sequence[int] | None,
        check_finite: bool,
    ) -> None:
        for name, value, allowed in (("positions", positions, get_args(Positions)), ("mode", mode, get_args(Mode))):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
        if mode == "clean" and positions != "last":
            raise ValueError(f"positions={positions!r} with mode='clean'; the unedited run is known at 'last' only")
        self.model = model
        self._architecture = describe(model)
        alignment.check(model)
        self._alignment = alignment
        self._positions: Positions = positions
        self._mode: Mode = mode
        self._row_alpha = row_alpha(alpha)
        self.alpha = site_alpha(alpha, alignment, layers)
        self._control = Control(watch=check_finite)
        self._calls: Calls | None = None
        self._installed: list[Installed] = []
        self._patches: list[Patch] = []
        self._state: Literal["new", "active", "done"] = "new"
        self.max_abs: dict[int, float] = {}
        self.growth: dict[int, float] = {}

    @property
    def layers(self) -> list[int]:
        """The sites that are edited: selected, with an alpha that is not 0."""
        return [site for site, value in self.alpha.items() if value != 0]

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``model.generate(*args, **kwargs)``."""
        self._need_active("generate")
        generate: Callable[..., Any] = self.model.generate  # type: ignore[assignment]
        return generate(*args, **kwargs)

    def expect_prompt(self) -> None:
        """Say that the next forward pass ends a prompt, even if it is one token after a non-empty cache.

        Needed outside ``generate`` only: to score a last token over a shared prefix, once per alpha.
        """
        self._need_active("expect_prompt").expect_prompt()

    def describe(self) -> str:
        """Which sites are edited, how strongly, at which tokens, and by which backend."""
        device = self._architecture.sites[0].device
        head = (
            f"{len(self.layers)} of {self._architecture.num_layers + 1} sites edited, form={self._alignment.form!r}, "
            f"positions={self._positions!r}, mode={self._mode!r}\n"
            f"  backend: {explain(backend_for(device), device=device)}"
        )
        lines = [
            f"  site {site.index}: {site.path} ({site.tap}), {self._alignment.maps[site.index]}, "
            f"alpha={'per row' if self.alpha[site.index] is None else self.alpha[site.index]}"
            for site in self._sites()
        ]
        return "\n".join([head, *lines])

    def __enter__(self) -> Self:
        backbone = self._architecture.backbone
        if self._state != "new":
            raise InterventionError(f"this intervention is {self._state}; call intervene(...) again for another one")
        if backbone in ACTIVE:
            raise InterventionError(
                "this model is being edited by another intervention; leave that one first. To apply several "
                "alignments, merge their maps into one Alignment"
            )
        ACTIVE.add(backbone)
        self._state = "active"
        try:
            self._install()
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        changed = self._restore()
        if not changed:
            return
        message = (
            f"the model was changed during the intervention: {', '.join(changed)} no longer held what intervene had "
            "put there. The originals were put back; what replaced them is gone, and edits may have been skipped"
        )
        if error is None:
            raise InterventionError(message)
        error.add_note(message)

    def _sites(self) -> list[Site]:
        return [self._architecture.sites[index] for index in self.layers]

    def _need_active(self, name: str) -> Calls:
        if self._calls is None:
            raise InterventionError(f"{name} was called outside the with block of this intervention")
        return self._calls

    def _install(self) -> None:
        architecture, model = self._architecture, self._architecture.model
        edits = [self._edit(site) for site in self._sites()]
        self._installed = [Installed(edit) for edit in edits]
        calls = Calls(
            architecture,
            self._control,
            self._positions,
            row_alpha=None if self._row_alpha is None else self._row_alpha.to(architecture.sites[0].device),
            interpolate=self._alignment.form == "interpolate",
            clone_embeddings=0 in self.layers,
            after=self._measure if self._control.watch else None,
        )
        self._calls = calls
        for owner, name in _entrances(self.model, architecture):
            forward = getattr(owner, name)
            if owner is architecture.backbone and name == "forward" and self._mode == "clean":
                forward = clean_forward(forward, owner, self._control)
            self._patches.append(Patch(owner, name, calls.announced(unwrap(owner), forward)))
        if hasattr(model, "generate"):
            settings = [getattr(model, "generation_config", None)]
            generate: Any = model.generate
            self._patches.append(Patch(model, "generate", calls.generating(generate, settings)))
        if hasattr(model, "init_continuous_batching"):
            self._patches.append(Patch(model, "init_continuous_batching", _refuse_continuous_batching))

    def _edit(self, site: Site) -> SiteEdit:
        alpha = self.alpha[site.index]
        value = 1.0 if alpha is None else alpha
        beta = 1.0 - value if self._alignment.form == "interpolate" else 1.0
        map, bias = self._alignment.maps[site.index], self._alignment.bias.get(site.index)
        bias = None if bias is None else bias.to(site.device)
        return SiteEdit(site, _computable(map, site), bias, value, beta, self._control)

    def _restore(self) -> list[str]:
        """Take everything out again, last in first out; returns what was no longer as installed."""
        model = self._architecture.model
        changed = [f"{type(patch.owner).__name__}.{patch.name}" for patch in self._patches if not patch.intact()]
        changed += [installed.site.path for installed in self._installed if not installed.intact(model)]
        for patch in reversed(self._patches):
            patch.undo()
        for installed in reversed(self._installed):
            installed.remove()
        self._patches, self._installed, self._calls = [], [], None
        self._control.disarm()
        ACTIVE.discard(self._architecture.backbone)
        self._state = "done"
        return changed

    def _measure(self, rows: Rows, alpha: Tensor | None) -> None:
        """Collect what the sites measured in one pass; refuse states that are not finite."""
        for installed in self._installed:
            index, edit = installed.site.index, installed.edit
            peak, growth = edit.take_measures()
            for measured, worst in ((peak, self.max_abs), (growth, self.growth)):
                value = float(measured.max())  # NaN if one is
                worst[index] = max(worst.get(index, 0.0), math.inf if math.isnan(value) else value)
            bad = (~peak.isfinite()).nonzero()
            if bad.numel():
                n = int(bad[0])
                row = n if rows.batch is None else int(rows.batch[n])
                strength = self.alpha[index] if alpha is None else float(alpha[row])
                raise NonFiniteStateError(
                    f"the edited state of site {index} ({installed.site.path}) is not finite in row {row} at "
                    f"alpha={strength}. Edits at many sites feed each other: lower alpha, edit fewer layers, or use "
                    f"form='interpolate'. Largest magnitude per site so far: {_rounded(self.max_abs)}"
                )


def _entrances(model: nn.Module, architecture: Architecture) -> list[tuple[nn.Module, str]]:
    """Callables through which a forward pass can enter the model, innermost first."""
    inner, outer = architecture.backbone, architecture.model
    wrappers = [module for module in outer.modules() if module is not inner and unwrap(module) is inner]
    modules = dict.fromkeys([inner, *wrappers, outer, model])
    entrances = [(module, "forward") for module in modules]
    # ``module.compile()`` compiles the whole call; announcing outside it keeps the graph whole.
    return entrances + [(m, "_compiled_call_impl") for m in (inner, outer) if m._compiled_call_impl is not None]


def _computable(map: AffineMap, site: Site) -> AffineMap:
    """The map on the site's device, in a dtype that the op takes: fp64 for fp64 states and only for them."""
    if site.dtype is torch.float64:
        return map.to(torch.float64, site.device)
    return map.to(torch.float32 if map.dtype is torch.float64 else None, site.device)


def _refuse_continuous_batching(*args: Any, **kwargs: Any) -> Any:
    raise InterventionError("continuous batching packs prompts into one row, which intervene cannot edit; use generate")


def _rounded(values: Mapping[int, float]) -> str:
    return ", ".join(f"{site}: {value:.3g}" for site, value in values.items())
