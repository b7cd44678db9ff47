"""INCLINE inside vLLM: maps of any rank, chosen per request, with the engine's compiled graphs left on.

``pip install incline-fast[vllm]`` is all the installation; vLLM finds the plugin by its entry point. It does nothing
until it is told which maps to serve::

    vllm serve MODEL --additional-config '{"incline_fast": {"maps": "alignments/"}}'

and a request names one: ``SamplingParams(extra_args={"incline": "fr-en", "incline_alpha": 0.1})``, over HTTP
``{"vllm_xargs": {"incline": "fr-en"}}``. What is edited, and what vLLM offers that cannot be combined with it, is in
docs/serving.md.
"""

from incline_fast.serving.offline import list_maps, load_map, unload_map

__all__ = ["list_maps", "load_map", "unload_map"]
