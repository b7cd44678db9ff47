"""Fast inference-time cross-lingual intervention (INCLINE, Wang et al., ACL 2025, arXiv 2410.12462).

alignment = incline_fast.fit(model, tokenizer, source, target)
with incline_fast.intervene(model, alignment, alpha=0.2):
    model.generate(**inputs)
"""

from incline_fast import ops
from incline_fast.alignment.alignment import Alignment, AlignmentError, AlignmentMetadata
from incline_fast.fitting.fit import fit, fit_states
from incline_fast.intervention.intervene import Intervention, InterventionError, NonFiniteStateError, intervene
from incline_fast.maps import AffineMap
from incline_fast.models.architectures import UnsupportedModelError
from incline_fast.nn import AffineLayerNorm, AffineRMSNorm
from incline_fast.ops import explain, set_batch_invariant
from incline_fast.solver.ridge import Ridge, RidgeAccumulator

__all__ = [
    "AffineLayerNorm",
    "AffineMap",
    "AffineRMSNorm",
    "Alignment",
    "AlignmentError",
    "AlignmentMetadata",
    "Intervention",
    "InterventionError",
    "NonFiniteStateError",
    "Ridge",
    "RidgeAccumulator",
    "UnsupportedModelError",
    "explain",
    "fit",
    "fit_states",
    "intervene",
    "ops",
    "set_batch_invariant",
]
