"""Fast inference-time cross-lingual intervention (INCLINE, Wang et al., ACL 2025, arXiv 2410.12462).

alignment = incline_fast.fit(model, tokenizer, source, target)
with incline_fast.intervene(model, alignment, alpha=0.2):
    model.generate(**inputs)

``import incline_fast`` loads torch and the compiled ops; everything else is loaded when its name is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from incline_fast import ops
from incline_fast.ops import explain, set_batch_invariant, set_programmatic_launch

if TYPE_CHECKING:
    from incline_fast.alignment.alignment import Alignment, AlignmentError, AlignmentMetadata
    from incline_fast.alignment.bundle import AlignmentBundle
    from incline_fast.fitting.fit import fit, fit_states
    from incline_fast.fitting.options import FitOptions
    from incline_fast.intervention.intervene import Intervention, InterventionError, NonFiniteStateError, intervene
    from incline_fast.maps import AffineMap
    from incline_fast.models.architectures import UnsupportedModelError
    from incline_fast.nn import AffineLayerNorm, AffineRMSNorm
    from incline_fast.solver.accumulator import RidgeAccumulator
    from incline_fast.solver.ridge import Ridge
    from incline_fast.text.detection import detect_languages

__all__ = [
    "AffineLayerNorm",
    "AffineMap",
    "AffineRMSNorm",
    "Alignment",
    "AlignmentBundle",
    "AlignmentError",
    "AlignmentMetadata",
    "FitOptions",
    "Intervention",
    "InterventionError",
    "NonFiniteStateError",
    "Ridge",
    "RidgeAccumulator",
    "UnsupportedModelError",
    "detect_languages",
    "explain",
    "fit",
    "fit_states",
    "intervene",
    "ops",
    "set_batch_invariant",
    "set_programmatic_launch",
]

_LAZY = {
    "alignment.bundle": ("AlignmentBundle",),
    "alignment.alignment": ("Alignment", "AlignmentError", "AlignmentMetadata"),
    "fitting.fit": ("fit", "fit_states"),
    "fitting.options": ("FitOptions",),
    "intervention.intervene": ("Intervention", "InterventionError", "NonFiniteStateError", "intervene"),
    "maps": ("AffineMap",),
    "models.architectures": ("UnsupportedModelError",),
    "nn": ("AffineLayerNorm", "AffineRMSNorm"),
    "solver.accumulator": ("RidgeAccumulator",),
    "solver.ridge": ("Ridge",),
    "text.detection": ("detect_languages",),
}
"""Public names by the module that defines them, which is imported when one of them is first used (PEP 562)."""

if not TYPE_CHECKING:  # a type checker would take it for the definition of any name whatever

    def __getattr__(name):
        for module, names in _LAZY.items():
            if name in names:
                globals()[name] = value = getattr(import_module(f"{__name__}.{module}"), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return sorted({*globals(), *__all__})
