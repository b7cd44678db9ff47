"""The modules and hooks that change the residual stream at one site, and what they share during a forward pass.

r' = beta r + alpha (M r + b)        at the rows of the current forward pass; every other row keeps its bits
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from incline_fast.intervention.positions import Rows
from incline_fast.maps import AffineMap
from incline_fast.models.architectures import Site, block_output, state_argument, unwrap
from incline_fast.nn import AffineLayerNorm, AffineRMSNorm
from incline_fast.ops import reference
from incline_fast.ops._dispatch import has_kernels

__all__ = ["Control", "EditedNorm", "Installed", "SiteEdit", "Stage", "backend_for"]


class Stage(Enum):
    """What a site does with the rows of the current forward pass."""

    EDIT = "edit"
    """Replace the state by its edited value."""
    RECORD = "record"
    """Remember the state, change nothing."""
    SET = "set"
    """Replace the state by the edited value of the state that was remembered."""


class Control:
    """The forward pass that is under way; one object, read by every edited site of a model.

    Attributes:
        armed: whether a forward pass was announced. A norm that runs without is a call that nothing is known of.
        rows: what is edited in it.
        stage: see :class:`Stage`.
        alpha, beta: ``[B]`` or None (each site's own number).
        watch: whether sites measure what they wrote.
    """

    def __init__(self, watch: bool) -> None:
        self.armed = False
        self.rows: Rows | None = None
        self.stage = Stage.EDIT
        self.alpha: Tensor | None = None
        self.beta: Tensor | None = None
        self.watch = watch

    def disarm(self) -> None:
        """The pass is over."""
        self.armed = False
        self.rows = None
        self.stage = Stage.EDIT


class SiteEdit:
    """The edit of one site.

    Attributes:
        alpha, beta: of this site, where ``control`` has no per-row values.
        clean: the remembered state of the rows.
        peak: ``[N]`` largest magnitude of each row written in the last pass; growth: ``[N]`` its norm over the norm
            before. Both are kept only under ``control.watch``.
    """

    def __init__(
        self, site: Site, map: AffineMap, bias: Tensor | None, alpha: float, beta: float, control: Control
    ) -> None:
        self.site = site
        self.map = map
        self.bias = bias
        self.alpha = alpha
        self.beta = beta
        self.control = control
        self.norm = _fused_norm(site, map, bias)
        self.clean: Tensor | None = None
        self.peak: Tensor | None = None
        self.growth: Tensor | None = None

    def pending(self, hidden: Tensor) -> Rows | None:
        """The rows of ``hidden`` to edit or record now.

        Raises:
            RuntimeError: the site was reached without a call of the model, so nobody knows which rows those are; or a
                gradient would have to flow through the edit.
        """
        if not self.control.armed:
            raise RuntimeError(
                f"{self.site.path} ran outside a call of the model. During intervene, call the model or its generate; "
                "single blocks cannot know which token is the last one of a prompt"
            )
        if self.control.rows is not None and hidden.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                "intervene edits the residual stream in place and has no gradient; call the model under "
                "torch.no_grad() or torch.inference_mode()"
            )
        return self.control.rows

    def record(self, rows: Rows, hidden: Tensor) -> None:
        """Remember the unedited state."""
        self.clean = rows.take(hidden).clone()

    def source(self, rows: Rows, hidden: Tensor) -> Tensor:
        """The state that the edited value is computed from; it will be overwritten."""
        if self.control.stage is Stage.SET:
            if self.clean is None:
                raise RuntimeError(f"{self.site.path} has no recorded state")
            state, self.clean = self.clean, None
            return state
        return rows.take(hidden)

    def transform(self, rows: Rows, state: Tensor) -> Tensor:
        """Edit ``state [..., d]`` in place; returns its norm (the new state itself where no norm is fused)."""
        alpha = self.alpha if self.control.alpha is None else rows.of_batch(self.control.alpha)
        beta = self.beta if self.control.beta is None else rows.of_batch(self.control.beta)
        before = torch.linalg.vector_norm(state, dim=-1, dtype=torch.float32) if self.control.watch else None
        if self.norm is None:
            maps = self.map
            weights = (maps.down, maps.up, maps.down_scale, maps.up_scale)
            edited, _ = reference.affine_residual(state, *weights, None, self.bias, alpha, beta, None)
            normed = state.copy_(edited)
        else:
            normed = self.norm.forward(state, alpha=alpha, beta=beta)  # private to this edit: nobody can hook it
        if before is not None:
            self.peak = state.abs().amax(-1).flatten()
            after = torch.linalg.vector_norm(state, dim=-1, dtype=torch.float32)
            self.growth = (after / before.clamp_min(torch.finfo(torch.float32).tiny)).flatten()
        return normed

    def take_measures(self) -> tuple[Tensor, Tensor]:
        """``peak`` and ``growth`` of the last pass, once.

        Raises:
            RuntimeError: this pass did not reach the site.
        """
        if self.peak is None or self.growth is None:
            raise RuntimeError(f"{self.site.path} did not run in this forward pass, so its edit was skipped")
        measures = self.peak, self.growth
        self.peak = self.growth = None
        return measures

    def edit_state(self, hidden: Tensor) -> None:
        """Edit or record a state that no norm reads."""
        rows = self.pending(hidden)
        if rows is None:
            return
        if self.control.stage is Stage.RECORD:
            self.record(rows, hidden)
            return
        state = self.source(rows, hidden)
        self.transform(rows, state)
        rows.put(hidden, state)


class EditedNorm(nn.Module):
    """Stands in for a norm that reads the residual stream: edits the stream in place and returns the normalised value.

    It has the parameters and buffers of the norm that it replaces under the same names, so that the model's state dict,
    parameter list, dtype and device changes are those of the unedited model.
    """

    plain: Callable[[Tensor], Tensor]
    edit: SiteEdit

    def __init__(self, edit: SiteEdit) -> None:
        super().__init__()
        original = edit.site.module
        self._parameters = original._parameters
        self._buffers = original._buffers
        self.training = original.training
        # Past nn.Module's registration: as a submodule the original would appear in the state dict a second time.
        self.__dict__["plain"] = original
        self.__dict__["edit"] = edit

    def __getattr__(self, name: str) -> Any:
        # Code that asks the norm for its epsilon and the like finds it here too.
        if "plain" not in self.__dict__ or name in self._parameters or name in self._buffers:
            return super().__getattr__(name)
        return getattr(self.plain, name)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Normalise ``[B, T, d]``, after editing the rows of the current pass in place."""
        edit = self.edit
        stage, rows = edit.control.stage, edit.pending(hidden_states)
        if rows is None:
            return self.plain(hidden_states)
        if stage is Stage.RECORD:
            edit.record(rows, hidden_states)
            return self.plain(hidden_states)
        if stage is Stage.EDIT and rows.batch is None and hidden_states.shape[1] == 1:
            return edit.transform(rows, hidden_states)
        # The unedited rows keep the bits that the plain norm gives them among all T rows.
        normed = self.plain(hidden_states)
        state = edit.source(rows, hidden_states)
        rows.put(normed, edit.transform(rows, state))
        rows.put(hidden_states, state)
        return normed

    def extra_repr(self) -> str:
        """What is edited, for ``print(model)``."""
        return f"site={self.edit.site.index}, {self.edit.map}, alpha={self.edit.alpha}, beta={self.edit.beta}"


class Installed:
    """A site's edit in its model, and the way back."""

    def __init__(self, edit: SiteEdit) -> None:
        self.edit = edit
        self.site = edit.site
        self.module = edit.site.module
        self._handle: RemovableHandle | None = None
        if edit.site.tap == "norm":
            self.module = EditedNorm(edit)
            edit.site.owner._modules[edit.site.name] = self.module
        elif edit.site.tap == "block_input":
            self._handle = self.module.register_forward_pre_hook(
                lambda module, args, kwargs: edit.edit_state(state_argument(args, kwargs)), with_kwargs=True
            )
        else:
            self._handle = self.module.register_forward_hook(
                lambda module, args, output: edit.edit_state(block_output(output))
            )

    def intact(self, model: nn.Module) -> bool:
        """Whether the model still runs this edit where it was put."""
        try:
            found = unwrap(model.get_submodule(self.site.path))
        except AttributeError:
            return False
        if self._handle is None:
            return found is self.module
        hooks = found._forward_pre_hooks if self.site.tap == "block_input" else found._forward_hooks
        return found is self.module and self._handle.id in hooks

    def remove(self) -> None:
        """Put the original module back, or take the hook off."""
        if self._handle is None:
            self.site.owner._modules[self.site.name] = self.site.module
        else:
            self._handle.remove()


def backend_for(device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Backend of the edited norms: kernels where there are any for the device and dtype, otherwise plain PyTorch."""
    return "auto" if has_kernels(device, dtype) else "reference"


def _fused_norm(site: Site, map: AffineMap, bias: Tensor | None) -> AffineRMSNorm | AffineLayerNorm | None:
    if site.tap != "norm":
        return None
    if site.module._forward_hooks or site.module._forward_pre_hooks:
        raise ValueError(f"{site.path} has forward hooks, which the edited norm would skip; remove them first")
    weight, eps, offset = site.weight, site.eps, site.weight_offset
    if weight.is_meta:
        raise ValueError(f"{site.path} has its weights offloaded; the edited norm needs them on the model's device")
    backend = backend_for(weight.device, weight.dtype)
    if site.kind == "rms":
        return AffineRMSNorm(weight, map, bias=bias, eps=eps, weight_offset=offset, backend=backend)
    return AffineLayerNorm(weight, site.bias, map, bias=bias, eps=eps, weight_offset=offset, backend=backend)
