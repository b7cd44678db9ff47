"""Prompts in four languages, three maps, an engine, and the same requests through transformers and ``intervene``."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from demo.fetch import prepare
from incline_fast import AffineMap, Alignment, AlignmentMetadata, intervene
from incline_fast.models.identity import identify_config
from incline_fast.text.parallel_text import ParallelText

__all__ = ["ALPHA", "LANGUAGES", "Ask", "Result", "ask_engine", "asks", "engine", "reference", "synthetic_maps"]

LANGUAGES = ("fr", "de", "tr")
ALPHA = 0.1
TEMPLATE = "{sentence}\nThe topic of this text is"
BLOCK = 32  # tokens of a block of the CPU's cache
BATCH = 16  # prompts that transformers gets at once


@dataclass(frozen=True)
class Ask:
    """One request: a prompt, and the map that edits it (None: a plain request)."""

    prompt: str
    map: str | None
    positions: str = "last"


@dataclass(frozen=True)
class Result:
    """Greedy tokens and their log-probabilities."""

    tokens: list[int]
    logprobs: list[float]


def asks(catalogs: Sequence[Path], count: int) -> list[Ask]:
    """``count`` requests whose languages alternate; the English ones are plain, as is every tenth of the others."""
    texts = [ParallelText.from_gettext(catalogs, language) for language in LANGUAGES]
    made = []
    for i in range(count):
        kind, row = i % 4, 3 * i
        english = kind == len(LANGUAGES)
        sentences = texts[0].target if english else texts[kind].source
        prompt = TEMPLATE.replace("{sentence}", " ".join(sentences[row : row + 3]))  # some blocks of the cache long
        made.append(Ask(prompt, None if english or i % 10 == 9 else f"{LANGUAGES[kind]}-en"))
    return made


def synthetic_maps(model: Path, folder: Path) -> Path:
    """Three alignments of the model with random maps: two ranks, both forms, one with maps at every third site only."""
    from transformers import AutoConfig

    identity = identify_config(AutoConfig.from_pretrained(model).get_text_config(), str(model))
    d, last = identity.hidden_size, identity.num_layers
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"fr": (16, "add", range(last + 1)), "de": (32, "interpolate", range(last + 1))}
    kinds["tr"] = (8, "add", range(2, last + 1, 3))
    for seed, (language, (rank, form, sites)) in enumerate(kinds.items()):
        g = torch.Generator().manual_seed(seed)
        maps, bias = {}, {}
        for site in sites:
            down, up = torch.randn(rank, d, generator=g) / d**0.5, torch.randn(d, rank, generator=g) / rank**0.5
            maps[site], bias[site] = AffineMap.low_rank(down, up), 0.1 * torch.randn(d, generator=g)
        about = AlignmentMetadata(
            model_id=identity.model_id,
            config_hash=identity.config_hash,
            num_layers=last,
            source_language=language,
            target_language="en",
            recommended_alpha=ALPHA,
        )
        made = Alignment.from_maps(maps, bias=bias, form=form, metadata=about)
        made.save(folder / f"{language}-en.safetensors")
    return folder


@contextmanager
def engine(model: Path, maps: Path | None, **options: Any) -> Iterator[Any]:
    """A ``vllm.LLM`` in this process; a worker of its own computes."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "fork")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    from vllm import LLM

    chosen = {
        "dtype": "float32",
        "max_model_len": 512,
        "block_size": BLOCK,
        "max_num_batched_tokens": 512,
        "max_num_seqs": 32,
        "seed": 0,
        "disable_log_stats": False,
        "additional_config": {} if maps is None else {"incline_fast": {"maps": str(maps)}},
    }
    llm = LLM(str(model), **{**chosen, **options})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def parameters(ask: Ask, tokens: int, **more: Any) -> Any:
    """Sampling parameters of a request."""
    from vllm import SamplingParams

    extra = None
    if ask.map is not None:
        extra = {"incline": ask.map, "incline_alpha": ALPHA, "incline_positions": ask.positions}
    return SamplingParams(temperature=0, max_tokens=tokens, logprobs=1, ignore_eos=True, extra_args=extra, **more)


def ask_engine(llm: Any, requests: Sequence[Ask], tokens: int, adapters: Any = None) -> list[Result]:
    """All requests in one continuous batch; ``adapters`` is vLLM's ``lora_request``."""
    given = [parameters(ask, tokens) for ask in requests]
    outputs = llm.generate([ask.prompt for ask in requests], given, use_tqdm=False, lora_request=adapters)
    return [result_of(output.outputs[0]) for output in outputs]


def result_of(completion: Any) -> Result:
    """Tokens of one completion with the log-probability of each."""
    chosen = zip(completion.token_ids, completion.logprobs, strict=True)
    return Result(list(completion.token_ids), [float(scores[token].logprob) for token, scores in chosen])


def reference(
    model: Path, maps: Path | None, requests: Sequence[Ask], tokens: int, dtype: torch.dtype = torch.float32
) -> list[Result]:
    """The same requests through transformers, those with the same map in batches of similar lengths, padded left."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    network.generation_config.eos_token_id = None
    results: dict[int, Result] = {}
    for kind in sorted({_kind(ask) for ask in requests}):
        alike = sorted(
            (i for i, ask in enumerate(requests) if _kind(ask) == kind), key=lambda i: len(requests[i].prompt)
        )
        map, positions = kind
        alignment = Alignment.load(maps / f"{map}.safetensors") if maps is not None and map else None
        for first in range(0, len(alike), BATCH):
            chosen = alike[first : first + BATCH]
            batch = tokenizer([requests[i].prompt for i in chosen], return_tensors="pt", padding=True)
            edits: Any = nullcontext()
            if alignment is not None:
                edits = intervene(network, alignment, alpha=ALPHA, positions=positions)
            with edits:
                results.update(zip(chosen, _generated(network, batch, tokens), strict=True))
    return [results[i] for i in range(len(requests))]


def _kind(ask: Ask) -> tuple[str, str]:
    return ask.map or "", ask.positions


def _generated(network: Any, batch: Any, tokens: int) -> Iterator[Result]:
    made = network.generate(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        max_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    chosen = made.sequences[:, batch.input_ids.shape[1] :]
    scores = [
        torch.log_softmax(logits.double(), -1).gather(1, chosen[:, i, None])[:, 0]
        for i, logits in enumerate(made.logits)
    ]
    for row, row_scores in zip(chosen.tolist(), torch.stack(scores, 1).tolist(), strict=True):
        yield Result(row, row_scores)


def fetched(name: str) -> tuple[Path, list[Path]]:
    """Folder of a model of the demo, and the catalogs with the text."""
    prepared = prepare(name)
    return prepared.model, prepared.catalogs
