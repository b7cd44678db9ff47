"""A server with three languages: ``python -m demo.serve --model smollm2 | gemma3 | <directory>``.

Learns maps from French, German and Turkish to English (kept in the demo's cache), starts ``vllm serve`` with them, asks
every prompt plain and edited at the same time, prints both answers side by side, and stops the server. The sentences
were not used to learn the maps. The answers show that requests are told apart, not that edited ones are better.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks.serving.server import Server, serve
from demo.fetch import CACHE, Prepared, prepare
from incline_fast import fit
from incline_fast.text.parallel_text import ParallelText
from incline_fast.text.prompts import DEFAULT_TEMPLATE, fill

__all__ = ["learn_maps"]

LANGUAGES = {"fr": "French", "de": "German", "tr": "Turkish"}
PAIRS = 256
ALPHA = 0.2
ASKED = 3  # sentences per language
TOKENS = 12


def learn_maps(prepared: Prepared, name: str) -> tuple[Path, dict[str, ParallelText]]:
    """Folder of the alignments, and per language the pairs that were not used to learn them."""
    folder = CACHE / "serve" / f"{name}-{PAIRS}"
    folder.mkdir(parents=True, exist_ok=True)
    model = tokenizer = None
    unused = {}
    for language, title in LANGUAGES.items():
        text = ParallelText.from_gettext(prepared.catalogs, language)
        unused[language] = text.select(range(PAIRS, PAIRS + ASKED))
        path = folder / f"{language}-en.safetensors"
        if path.exists():
            continue
        if model is None:
            model, tokenizer = _load(prepared.model)
        print(f"== learning {title} -> English from {PAIRS} pairs", flush=True)
        learned = fit(model, tokenizer, text.select(range(PAIRS)), template=DEFAULT_TEMPLATE)
        learned.with_metadata(recommended_alpha=ALPHA, source_language=language, target_language="en").save(path)
    return folder, unused


def _load(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


def _answers(server: Server, unused: dict[str, ParallelText]) -> list[tuple[str, str, str, str]]:
    """``(language, sentence, plain answer, edited answer)``, asked all at once."""
    asked = [(language, sentence) for language, text in unused.items() for sentence in text.source]

    def ask(job: tuple[str, str | None]) -> str:
        sentence, maps = job
        answer = server.complete(fill(DEFAULT_TEMPLATE, sentence), maps, max_tokens=TOKENS)
        answer.raise_for_status()
        text: str = answer.json()["choices"][0]["text"]
        return " ".join(text.split())

    jobs = [(sentence, maps) for language, sentence in asked for maps in (None, f"{language}-en")]
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(ask, jobs))
    rows = zip(asked, answers[::2], answers[1::2], strict=True)
    return [(LANGUAGES[language], sentence, plain, edited) for (language, sentence), plain, edited in rows]


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 or a folder with a transformers model")
    given = parser.parse_args()
    prepared = prepare(given.model)
    folder, unused = learn_maps(prepared, prepared.model.resolve().name)
    print(
        "== starting vllm serve with", ", ".join(path.stem for path in sorted(folder.glob("*.safetensors"))), flush=True
    )
    with tempfile.TemporaryDirectory() as temporary:
        start = time.monotonic()
        with serve(prepared.model, folder, Path(temporary) / "server.log") as server:
            print(f"   ready after {time.monotonic() - start:.0f} s at {server.url}", flush=True)
            listed = httpx.get(f"{server.url}/v1/incline", timeout=60).json()
            rows = _answers(server, unused)
            refused = server.complete("Hello", "nowhere")
    console = Console(width=150)
    maps = Table(title="GET /v1/incline")
    for column in ("name", "languages", "sites", "rank", "recommended alpha"):
        maps.add_column(column)
    for name, about in listed["maps"].items():
        languages = f"{about['source_language']} -> {about['target_language']}"
        maps.add_row(name, languages, *map(str, (about["layers"], about["rank"], about["recommended_alpha"])))
    console.print(maps)
    table = Table(title=f"POST /v1/completions, alpha = {ALPHA}, greedy", show_lines=True)
    for column in ("language", "sentence", "plain", "edited"):
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"An unknown map: {refused.status_code}, {refused.json()['error']['message']}")
    console.print("== server stopped")


if __name__ == "__main__":
    main()
