"""What changes the residual stream at one site.

r' = beta r + alpha (M r + b)        at the rows of the current forward pass; every other row keeps its bits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from incline_fast.intervention.forward_pass import ForwardPass, Stage
from incline_fast.intervention.mixture import SiteStack
from incline_fast.intervention.positions import EditedTokens
from incline_fast.maps import AffineMap
from incline_fast.models.sites import Site
from incline_fast.ops import affine_residual
from incline_fast.ops._arguments import PerRow
from incline_fast.ops._dispatch import differentiates, has_kernels
from incline_fast.ops._extension import EXTENSION
from incline_fast.ops.affine_norm import LAYER_NORM, RMS_NORM, NormOp
from incline_fast.torch_modes import functorch_level, is_plain

__all__ = ["Shared", "SiteEdit", "backend_for"]

_DOUBLE = torch.float64
_NOTHING = torch.empty(0, device="cpu")


class Shared:
    """Tensors that the sites of one intervention share.

    Args:
        strengths: (alpha, beta) of each site, by its position among the edited ones.
    """

    def __init__(self, strengths: Sequence[tuple[float, float]]) -> None:
        self._strengths = strengths
        self._made: dict[tuple[int, torch.dtype, torch.device], _Placed] = {}
        self._constants: dict[tuple[float, torch.dtype], Tensor] = {}

    def at(self, hidden_size: int, dtype: torch.dtype, device: torch.device) -> _Placed:
        """What sites use whose states are on ``device`` and summed in ``dtype``."""
        key = (hidden_size, dtype, device)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = _Placed(
                torch.ones(hidden_size, dtype=dtype, device=device),
                torch.tensor(self._strengths, dtype=dtype, device=device).unbind(),
                backend_for(device, dtype),
            )
        return found

    def constant(self, value: float, dtype: torch.dtype, count: int) -> Tensor:
        """``count`` or more times ``value``, on the CPU."""
        found = self._constants.get((value, dtype))
        if found is None or len(found) < count:
            with torch.inference_mode(False):
                found = torch.full((count,), value, dtype=dtype, device="cpu")
            if is_plain(found):
                self._constants[value, dtype] = found
        return found


class _Placed(NamedTuple):
    """What sites share that have their states on the same device and sums in the same dtype.

    Attributes:
        ones: the weight of a norm that has none.
        numbers: per site a tensor ``[2]``, alpha and beta; one tensor is made for all of them.
        backend: which kernels edit.
    """

    ones: Tensor
    numbers: tuple[Tensor, ...]
    backend: str


class SiteEdit:
    """The edit of one site.

    Attributes:
        site: where it is; ``index`` its number.
        map, bias: M and b, where the states are and in a dtype that the op takes with theirs.
        alpha, beta: of this site, where the pass has none per row.
        reads_norm: whether the norm of the site reads the state, so that one kernel can do both.
        watch: whether states are measured before and after.
        kind: which of a pass's ``row_maps``, and of its strengths where they differ by site, belongs to this site.
    """

    def __init__(
        self,
        site: Site,
        map: AffineMap,
        bias: Tensor | None,
        strengths: tuple[float, float],
        position: int,
        shared: Shared,
        watch: bool,
        kind: int = 0,
    ) -> None:
        self.site = site
        self.index = site.index
        self.map = map
        self.bias = bias
        self.alpha, self.beta = strengths
        self._position = position
        self.reads_norm = site.tap == "norm"
        self.watch = watch
        self.kind = kind
        self._source = (map, bias)
        self._shared = shared
        self._fit(map.device, map.dtype is torch.float64)

    def take(self, stack: SiteStack) -> None:
        """Edit with a stack of maps from now on, each row with that of its language."""
        self._source, self.kind = (stack.map, stack.bias), stack.kind
        self._fit(self._device, self._double)
        if self._device.type == "cpu":
            # A new stack has no layout yet. Code compiled without one would be compiled again once there is one.
            self.map.packed()

    def _fit(self, device: torch.device, double: bool) -> None:
        """Bring the map to where the states are; a model may be moved or converted while it is edited."""
        map, bias = self._source
        wide = torch.float64 if double else torch.float32
        if double or map.dtype is torch.float64:
            map = map.to(wide)
        self.map = map if map.device == device else map.to(device=device)
        self.bias = None if bias is None else bias.to(device)
        shared = self._shared.at(map.hidden_size, wide, device)
        self._no_norm, self._backend = (shared.ones,), shared.backend
        # A tensor, because compiled code treats a Python number as a constant and compiles again for another value.
        self._numbers = shared.numbers[self._position]
        self._device, self._double = device, double
        self._finds_rows = EXTENSION is not None and device.type == "cpu" and not self.watch
        self._constants = (_NOTHING, _NOTHING)

    def pending(self, running: ForwardPass | None, hidden: Tensor) -> ForwardPass | None:
        """The pass under way, if it edits or records rows of ``hidden``.

        Raises:
            RuntimeError: the site was reached without a call of the model, so the rows to edit are not known; or a
                gradient would have to flow through the edit.
        """
        if running is None:
            raise RuntimeError(
                f"{self.site.path} ran outside a call of the model. During intervene, call the model or its generate; "
                "single blocks cannot know which token is the last one of a prompt"
            )
        if running.rows is None:
            return None
        if hidden.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "intervene edits the residual stream in place and has no gradient; call the model under "
                "torch.no_grad() or torch.inference_mode()"
            )
        return running

    def edit(self, running: ForwardPass | None, hidden: Tensor) -> None:
        """Edit or record the rows of a state ``[B, T, d]`` in place."""
        if self.edit_rows(running, hidden):
            return
        running = self.pending(running, hidden)
        if running is None:
            return
        rows = running.rows
        assert rows is not None
        if running.stage is Stage.EDIT:
            state = rows.take(hidden)
            self._transform(running, state, RMS_NORM, self._no_norm, 0.0, 0.0)
            if rows.batch is not None:  # pairs are a copy; a block was edited where it is
                rows.put(hidden, state)
        elif running.stage is Stage.RECORD:
            running.states[self.index] = rows.take(hidden).clone()
        else:
            self._set(running, rows, hidden)

    def edit_rows(self, running: ForwardPass | None, hidden: Tensor) -> bool:
        """Edit single tokens of longer texts in place; the CPU's kernel finds them without a gather and a scatter.

        False: nothing was done, and the other ways are to be taken. Written flat, because beside the products it is
        most of what a prompt pays.
        """
        if (
            running is None
            or torch.compiler.is_compiling()
            or not self._finds_rows
            or running.rows is None
            or not running.rows.sparse
            or running.stage is not Stage.EDIT
            or hidden.shape[1] == 1
            or not hidden.is_cpu
            or (hidden.dtype is _DOUBLE) is not self._double
            or functorch_level() is not None
            or forward_ad._current_level >= 0
            or (torch.is_grad_enabled() and differentiates(hidden, self.map, self.bias, *running.strengths(self.kind)))
        ):
            return False
        row_map, alpha, beta = running.per_token(self.kind, hidden.shape)
        if alpha is None:
            alpha, beta = self._constants
            if len(row_map) > min(len(alpha), len(beta)):
                alpha, beta = self._make_room(len(row_map))
        map = self.map
        down, up = map.packed()
        affine_residual.OP(hidden, None, down, up, map.down_scale, map.up_scale, self.bias, alpha, beta, row_map)
        torch._C._increment_version((hidden,))
        return True

    def _make_room(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Alpha and beta for passes of up to so many tokens; kept in one step, because threads share this edit."""
        dtype = _DOUBLE if self._double else torch.float32
        constants = (
            self._shared.constant(self.alpha, dtype, tokens),
            self._shared.constant(self.beta, dtype, tokens),
        )
        self._constants = constants
        return constants

    def _set(self, running: ForwardPass, rows: EditedTokens, hidden: Tensor) -> None:
        """Put the edited value of the remembered state in the place of the rows."""
        state = running.states.pop(self.index)
        self._transform(running, state, RMS_NORM, self._no_norm, 0.0, 0.0)
        row_map = self._row_map(running)
        if row_map is not None:
            # A row whose language has no map here is not set to the state of the unedited run.
            absent = (row_map < 0).view(*state.shape[:-1], 1)
            state = torch.where(absent, rows.take(hidden), state)
        rows.put(hidden, state)

    def edited(self, running: ForwardPass | None, hidden: Tensor) -> Tensor:
        """``hidden`` with its rows edited, for a state that no norm reads; ``hidden`` itself where nothing is edited.

        Other code that holds ``hidden`` (a skip connection over several blocks) continues with the unedited state.
        """
        running = self.pending(running, hidden)
        if running is None:
            return hidden
        axis, rows = self.site.stream_axis, running.rows
        assert rows is not None
        new = hidden.clone() if axis is None else hidden.mean(axis)
        before = None if axis is None else rows.take(new).clone()
        self.edit(running, new)
        if running.stage is Stage.RECORD:
            return hidden
        if axis is None or before is None:
            return new
        change = rows.take(new) - before
        streams = hidden.clone()
        for stream in streams.unbind(axis):
            rows.put(stream, rows.take(stream) + change)
        return streams

    def edit_and_normalise(self, running: ForwardPass | None, norm: nn.Module, hidden: Tensor) -> Tensor | None:
        """Edit a state that ``norm`` is about to read; the normalised state where one kernel does both.

        That is possible where all tokens of the pass are edited, as in a decode step, and the norm has no hooks that
        the kernel would skip. Otherwise the norm runs itself, on the edited state, and None is returned.
        """
        if (
            running is None
            or running.rows is None
            or hidden.shape[1] != 1
            or running.stage is not Stage.EDIT
            or running.rows.batch is not None
            or running.untouched
            # So that the same compiled code runs batches with and without rows that keep their bits.
            or (running.row_maps is not None and torch.compiler.is_compiling())
            or running.rows.top is not None
            or running.rows.bottom is not None
            or not _is_bare(norm)
        ):
            self.edit(running, hidden)
            return None
        self.pending(running, hidden)
        site = self.site
        weight = getattr(norm, "weight", None)
        if weight is None:
            (weight,) = self._no_norm
        elif weight.device != hidden.device:  # offloaded
            self.edit(running, hidden)
            return None
        if site.kind == "rms":
            return self._transform(running, hidden, RMS_NORM, (weight,), site.eps, site.weight_offset)
        vectors = (weight, getattr(norm, "bias", None))
        return self._transform(running, hidden, LAYER_NORM, vectors, site.eps, site.weight_offset)

    def _transform(
        self,
        running: ForwardPass,
        state: Tensor,
        op: NormOp,
        vectors: tuple[Tensor | None, ...],
        eps: float,
        weight_offset: float,
    ) -> Tensor:
        """Edit ``state [..., d]`` in place; returns its norm."""
        double = state.dtype is torch.float64
        if state.device != self._device or double is not self._double:
            self._fit(state.device, double)
        alpha, beta = self._strengths(running, state)
        row_map = self._row_map(running)
        before = torch.linalg.vector_norm(state, dim=-1, dtype=torch.float32) if self.watch else None
        normed = op.in_place(
            state, vectors, self.map, None, self.bias, alpha, beta, row_map, eps, weight_offset, self._backend
        )
        if before is not None:
            running.measures[self.index] = _measures(state, before, row_map)
        return normed

    def _row_map(self, running: ForwardPass) -> Tensor | None:
        """int32, for each row its map in the stack, -1: none; None where every row has map 0."""
        return None if running.row_maps is None else running.row_maps[self.kind].to(self._device)

    def _strengths(self, running: ForwardPass, state: Tensor) -> tuple[PerRow, PerRow]:
        alpha, beta = running.strengths(self.kind)
        if alpha is not None:
            alpha = alpha.to(self._device)
            return alpha, 1.0 if beta is None else beta.to(self._device)
        if torch.compiler.is_compiling():
            rows = state.shape[:-1].numel()
            numbers = self._numbers.unsqueeze(1).expand(2, rows)
            return numbers[0], numbers[1]
        return self.alpha, self.beta


def _measures(state: Tensor, before: Tensor, row_map: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of each edited row its largest magnitude, and its norm over the norm ``before``."""
    after = torch.linalg.vector_norm(state, dim=-1, dtype=torch.float32)
    growth = (after / before.clamp_min(torch.finfo(torch.float32).tiny)).flatten()
    peak = state.abs().amax(-1).flatten()
    if row_map is None:
        return peak, growth
    untouched = row_map < 0  # rows that were not edited are not measured
    return peak.masked_fill(untouched, 0), growth.masked_fill(untouched, 0)


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Backend of the edits: kernels where there are any for the device and dtype, otherwise plain PyTorch."""
    return "auto" if has_kernels(device, dtype) else "reference"


def _is_bare(module: nn.Module) -> bool:
    """Whether calling the module runs the forward of its class and nothing else."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._modules
        or module._compiled_call_impl is not None
        or "forward" in module.__dict__
        or _has_any_global_hook()  # type: ignore[no-untyped-call]
    )
