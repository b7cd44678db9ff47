"""The model class ``incline`` of lm-evaluation-harness: ``hf`` whose contexts are edited at their last token.

A continuation is scored or generated after an edited context; the continuation's tokens are not edited. Each context
runs once for all of its continuations, and what all contexts begin with (few-shot examples) runs once for all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from incline_fast.alignment import Alignment
from incline_fast.evaluation.continuations import score_tokens
from incline_fast.evaluation.scoring import PLAIN, Variant
from incline_fast.intervention.intervene import intervene
from incline_fast.states.prompt_runner import PromptRunner

__all__ = ["InclineLM"]

_LOG = logging.getLogger(__name__)

Request = tuple[Any, list[int], list[int]]
"""What identifies a request, or None; tokens of its context; tokens of its continuation."""


@register_model("incline")
class InclineLM(HFLM):  # type: ignore[misc]
    """A causal LM of transformers under an alignment.

    A context that is the harness's prefix token alone (an empty context, the beginning of a text under
    ``loglikelihood_rolling``) has no text to edit: it is scored plainly.
    """

    def __init__(self, pretrained: Any, alignment: str | Alignment, alpha: float | None = None, **options: Any) -> None:
        """Load model and maps.

        Args:
            pretrained: name or folder of a model, or the model itself.
            alignment: file of the maps, or the maps.
            alpha: strength; None: the one that the file recommends.
            options: of the harness's class ``hf``: tokenizer, dtype, device, batch_size and so on.

        Raises:
            ValueError: no alpha is given and none is recommended; the model is not a decoder.
            AlignmentError: the maps were made for another model.
        """
        maps = alignment if isinstance(alignment, Alignment) else Alignment.load(alignment)
        strength = maps.metadata.recommended_alpha if alpha is None else alpha
        if strength is None:
            raise ValueError("alpha is not given and the alignment recommends none; add alpha=... to model_args")
        super().__init__(pretrained=pretrained, **options)
        if self.backend != "causal":
            raise ValueError(f"backend is {self.backend!r}; allowed: 'causal'")
        maps.check(self.model)
        self._alignment = maps
        self._edited = Variant("INCLINE", maps, float(strength))
        self._runner = PromptRunner(self.model, self.tokenizer)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results: about the model, and about the edit."""
        about = self._alignment.metadata
        return {
            **super().get_model_info(),
            "incline_alpha": self._edited.alpha,
            "incline_sites": list(self._edited.sites),
            "incline_estimator": about.estimator,
            "incline_template": about.template,
        }

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of every continuation, and whether greedy decoding gives it."""
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        size = override_bs or self._batch(requests)
        for variant, edited in ((PLAIN, False), (self._edited, True)):
            places = [i for i, (context, _) in enumerate(pairs) if (context != [self.prefix_token_id]) == edited]
            if not places:
                continue
            found, greedy = score_tokens(
                self._runner,
                [pairs[i] for i in places],
                [variant],
                batch=size,
                batch_rows=size,
                progress=not disable_tqdm and self.rank == 0,
                what="Running loglikelihood requests",
            )
            for i, log_p, as_greedy in zip(places, found[0].tolist(), greedy[0].tolist(), strict=True):
                answers[i] = log_p, as_greedy
        for (about, _, _), answer in zip(requests, answers, strict=True):
            if about is not None:
                self.cache_hook.add_partial("loglikelihood", about, answer)
        return answers

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> torch.Tensor:
        with intervene(self.model, self._alignment, alpha=self._edited.alpha):
            generated: torch.Tensor = super()._model_generate(context, max_length, stop, **options)
        return generated

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """Context and continuation; a beginning beyond the model's length is left out, as in ``hf``."""
        # The last token of the continuation is scored, but never fed.
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise ValueError(f"a continuation has {len(continuation)} tokens; the model takes {self.max_length}")
        if len(context) > room:
            _LOG.warning("a context of %d tokens is cut to its last %d", len(context), room)
        return context[-room:], continuation

    def _batch(self, requests: Sequence[Request]) -> int:
        if self.batch_size != "auto":
            return int(self.batch_size)
        longest = max(range(len(requests)), key=lambda i: len(requests[i][1]) + len(requests[i][2]))
        return int(self._detect_batch_size(requests, longest))
