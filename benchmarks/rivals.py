"""Libraries of forward hooks that can edit a decoder's states, as ways of ``benchmarks/intervene.py``.

    pip install --no-deps --target DIR -r benchmarks/rivals.txt
    PYTHONPATH=.:DIR python -m benchmarks.intervene --rivals

  pyvene            an intervention of its own class at every block's output, at the prompt's last position
  nnsight           ``generate`` under a trace, in which every block's output is written at the last position
  steering-vectors  a vector at every block's output instead of a map, at the last position of every pass

Each is built once and called as ``generate(inputs, tokens)``. What is not installed is left out, and said.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

Generate = Callable[[dict[str, Tensor], int], Tensor]


def options(tokens: int) -> dict[str, Any]:
    """Greedy, and exactly so many tokens."""
    return {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}


def pyvene(model: Any, maps: dict[int, Tensor], alpha: float) -> Generate:
    """Wu et al., 2024 (arXiv 2403.07809)."""
    import pyvene as library

    class AddMapped(library.ConstantSourceIntervention):  # type: ignore[name-defined, misc]
        """``h + alpha * h W``."""

        def __init__(self, W: Tensor, **settings: Any) -> None:
            super().__init__(**settings, keep_last_dim=True)
            self.W = W

        def forward(self, base: Tensor, source: Any = None, subspaces: Any = None) -> Tensor:
            return base + alpha * (base @ self.W)

    sites = [
        {"component": f"model.layers[{site - 1}].output", "intervention": AddMapped(W)} for site, W in maps.items()
    ]
    edited = library.IntervenableModel(sites, model=model)

    def generate(inputs: dict[str, Tensor], tokens: int) -> Tensor:
        last = inputs["input_ids"].shape[1] - 1
        out: Tensor = edited.generate(
            inputs, unit_locations={"base": last}, intervene_on_prompt=True, **options(tokens)
        )[1]
        return out

    return generate


def nnsight(model: Any, maps: dict[int, Tensor], alpha: float) -> Generate:
    """Fiotto-Kaufman et al., 2025 (arXiv 2407.14561)."""
    from nnsight import NNsight

    wrapped = NNsight(model)

    def generate(inputs: dict[str, Tensor], tokens: int) -> Tensor:
        with wrapped.trace(fn="generate", **inputs, **options(tokens)) as tracer:
            for site, W in maps.items():
                block = wrapped.model.layers[site - 1]
                h = block.output[0] if isinstance(block.output, tuple) else block.output
                h[:, -1] += alpha * (h[:, -1] @ W)
            out = tracer.result.save()
        result: Tensor = out
        return result

    return generate


def steering_vectors(model: Any, maps: dict[int, Tensor], alpha: float) -> Generate:
    """A vector per site, as the library has no maps: less to compute and to read."""
    from steering_vectors import SteeringVector

    vector = SteeringVector({site - 1: W[0].clone() for site, W in maps.items()})

    def generate(inputs: dict[str, Tensor], tokens: int) -> Tensor:
        with vector.apply(model, multiplier=alpha, min_token_index=None, token_indices=[-1]):
            out: Tensor = model.generate(**inputs, **options(tokens))
        return out

    return generate


MAKERS = {"pyvene": pyvene, "nnsight": nnsight, "steering-vectors": steering_vectors}
APPLY_MAPS = ("pyvene", "nnsight")


def installed(model: Any, maps: dict[int, Tensor], alpha: float) -> dict[str, Generate]:
    """Those that can be imported, with maps for ``h @ W``."""
    ways = {}
    for name, make in MAKERS.items():
        if importlib.util.find_spec(name.replace("-", "_")) is None:
            print(f"{name} is not installed and is left out", file=sys.stderr)
        else:
            ways[name] = make(model, maps, alpha)
    return ways
