"""The plugin's part of the process that talks to clients: configuration, admission, and the names of maps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from incline_fast.alignment.metadata import library_version
from incline_fast.models.identity import identify_config
from incline_fast.serving.catalog import Catalog, layout_of
from incline_fast.serving.config import KEY, ServingConfig
from incline_fast.serving.errors import RequestError, ServingError
from incline_fast.serving.request import WIRE, resolve

__all__ = ["admitting", "catalog_of", "configure", "refuse_beam_search"]

_ATTRIBUTE = "incline_fast"


def configure(vllm_config: Any, config: ServingConfig) -> None:
    """Enter the plugin into vLLM's configuration, from which every process gets it.

    What compiled graphs depend on becomes part of ``additional_config``, whose hash names the caches of compiled code;
    the names of maps do not.

    Raises:
        ServingError: something was configured that cannot be combined with edits.
        RequestError: an alignment was made for another model.
    """
    _refuse_unsupported(vllm_config)
    text_config = vllm_config.model_config.hf_text_config
    layout = layout_of(config, int(text_config.hidden_size))
    vllm_config.additional_config = {
        **vllm_config.additional_config,
        KEY: {"version": library_version(), **asdict(layout)},
    }
    setattr(vllm_config, _ATTRIBUTE, (config, layout))
    refuse_beam_search()
    make_catalog(vllm_config)  # a file that cannot be served is reported before any model is loaded


def settings_of(vllm_config: Any) -> Any:
    """``(ServingConfig, BankLayout)``, None where the engine was started without maps."""
    return getattr(vllm_config, _ATTRIBUTE, None)


def _refuse_unsupported(vllm_config: Any) -> None:
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ServingError("pipeline_parallel_size is above 1; edits need all blocks of the model in one worker")
    if parallel.data_parallel_size > 1:
        raise ServingError("data_parallel_size is above 1; maps can be loaded into one engine only")
    if vllm_config.use_v2_model_runner:
        raise ServingError(
            "vLLM would use its model runner V2, whose steps the plugin does not follow; set VLLM_USE_V2_MODEL_RUNNER=0"
        )


def make_catalog(vllm_config: Any) -> Catalog:
    """A catalog of the alignments to be loaded at start-up."""
    config, layout = settings_of(vllm_config)
    model = vllm_config.model_config
    identity = identify_config(_original_config(model), str(model.model))
    catalog = Catalog(config, layout, identity)
    files = config.files()
    if len(files) > config.max_maps:
        raise ServingError(f"{len(files)} alignments are to be loaded, max_maps is {config.max_maps}; raise it")
    for name, path in files.items():
        catalog.put(name, catalog.read(path))
    return catalog


def _original_config(model: Any) -> Any:
    """The model's configuration as transformers reads it: vLLM rewrites parts of its own."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model.model, revision=model.revision, trust_remote_code=model.trust_remote_code)
    return config.get_text_config()


def catalog_of(processor: Any) -> Catalog | None:
    """The catalog of a front end, made at its first use; None where the engine was started without maps."""
    if settings_of(processor.vllm_config) is None:
        return None
    catalog: Catalog | None = getattr(processor, "incline_catalog", None)
    if catalog is None:
        catalog = processor.incline_catalog = make_catalog(processor.vllm_config)
    return catalog


def admitting(original: Callable[..., Any]) -> Callable[..., Any]:
    """``InputProcessor.process_inputs``: an admitted request carries its edit with the name of the map resolved."""
    from vllm.exceptions import VLLMValidationError

    def process_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = original(self, *args, **kwargs)
        parameters = request.sampling_params
        given = None if parameters is None else parameters.extra_args
        if given is None or not any(str(key).startswith("incline") for key in given):
            return request
        catalog = catalog_of(self)
        if catalog is None:
            if "incline" in given:
                raise VLLMValidationError(
                    f"incline is {given['incline']!r}, but this engine was started without maps", parameter="incline"
                )
            return request
        try:
            edit = resolve(
                given, catalog, request.prompt_token_ids, _bos_token_ids(self.model_config), catalog.config.max_alpha
            )
        except RequestError as error:
            raise VLLMValidationError(str(error), parameter=error.argument, value=error.value) from error
        if edit is not None:
            parameters.extra_args = {**given, WIRE: edit.wire()}
        return request

    return process_inputs


def refuse_beam_search() -> None:
    """HTTP requests with beams and a map get 400.

    vLLM searches with beams by sending every prefix as a new prompt, without the request's extra arguments. So an edit
    would silently be left out; and at the last token of each such prompt it would not be the edit that was asked for.
    """
    for name, kind in (("completion", "CompletionRequest"), ("chat_completion", "ChatCompletionRequest")):
        module = sys.modules.get(f"vllm.entrypoints.openai.{name}.protocol")
        if module is not None:  # an offline engine has no such requests
            owner = getattr(module, kind)
            owner.to_beam_search_params = _without_maps(owner.to_beam_search_params)


def _without_maps(original: Callable[..., Any]) -> Callable[..., Any]:
    from vllm.exceptions import VLLMValidationError

    def to_beam_search_params(self: Any, *args: Any, **kwargs: Any) -> Any:
        if any(str(key).startswith("incline") for key in self.vllm_xargs or ()):
            raise VLLMValidationError("beam search cannot be combined with incline", parameter="use_beam_search")
        return original(self, *args, **kwargs)

    return to_beam_search_params


def _bos_token_ids(model: Any) -> Sequence[int]:
    found: set[int] = set()
    generation = model.try_get_generation_config()
    for ids in (getattr(model.hf_text_config, "bos_token_id", None), generation.get("bos_token_id")):
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    return sorted(found)
