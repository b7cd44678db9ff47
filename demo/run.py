"""The main job on real input: ``python -m demo.run --model gemma3 | smollm2 | <directory>``.

Learns maps from French, German and Turkish to English, chooses lambda and alpha on development pairs, measures on
held-out pairs against controls, generates, times, and writes ``demo/report.html``. The numbers are kept in a JSON file,
from which ``python -m demo.report`` makes the page again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.experiment import LANGUAGES, LAST_LAYER, OURS, PAPER, PAPER_PAIRS, Task, as_record, learn, measure, split_text
from demo.fetch import CACHE, Prepared, prepare
from demo.latency import measure_latency
from demo.report import write_report
from demo.samples import generate_samples
from incline_fast import AlignmentMetadata, explain
from incline_fast.text.prompts import DEFAULT_TEMPLATE, fill

__all__ = ["run"]


def run(prepared: Prepared, name: str) -> dict[str, Any]:
    """Everything that the report tells, as plain values."""
    clock = _Clock()
    machine = _machine()
    with clock("load the model"):
        task = _load(prepared, name)
    with clock("parallel text"):
        splits = {language: split_text(prepared.catalogs, language) for language in LANGUAGES}
    with clock("English states"):
        sentences = sorted({s for split in splits.values() for s in split.fit.target + split.dev.target})
        english = {sentence: row for row, sentence in enumerate(sentences)}
        english_states = task.states("en", sentences)
    languages: dict[str, Any] = {}
    for language, split in splits.items():
        with clock(f"{LANGUAGES[language]}: fit, choose lambda and alpha"):
            learned = learn(task, split, english, english_states, language)
            print(f"   chosen on development pairs: lambda {learned.lam:g}, alpha {learned.alpha:g}", flush=True)
        with clock(f"{LANGUAGES[language]}: measure on held-out pairs"):
            held_out = measure(task, learned)
            for line, result in held_out.items():
                at = learned.alpha if line == OURS else result.best_alpha
                print(f"   {line:<30} alpha {at:<5g} KL {result.change[result.index(at)]:+.1%}", flush=True)
        with clock(f"{LANGUAGES[language]}: generate"):
            samples = generate_samples(task, learned)
        path = CACHE / "alignments" / f"{name}-{language}-en.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        learned.compared[OURS].save(path)
        languages[language] = {
            "name": LANGUAGES[language],
            "pairs": {part: len(getattr(split, part)) for part in ("fit", "dev", "test")},
            "lam": learned.lam,
            "alpha": learned.alpha,
            "dev": {f"{lam:g}": as_record(result) for lam, result in learned.dev.items()},
            "held_out": {line: as_record(result) for line, result in held_out.items()},
            "fit_error": learned.fit_error,
            "samples": samples,
            "artifact": path.name,
        }
    with clock("latency"):
        prompt = fill(DEFAULT_TEMPLATE, learned.split.test.source[0])
        latency = measure_latency(task.model, task.tokenizer, learned.compared[OURS], learned.alpha, prompt)
    return {
        "model": prepared.title,
        "licence": prepared.licence,
        "dtype": "float32",
        "template": DEFAULT_TEMPLATE,
        "lines": {"ours": OURS, "paper": PAPER, "last_layer": LAST_LAYER, "paper_pairs": PAPER_PAIRS},
        "languages": languages,
        "latency": latency,
        "seconds": clock.seconds,
        "machine": machine,
    }


def _load(prepared: Prepared, name: str) -> Task:
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Task(model, tokenizer, CACHE / "states" / name)


class _Clock:
    """Says what is being done and how long it took."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        print(f"== {step}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[step] = time.perf_counter() - start
        print(f"   {self.seconds[step]:.1f} s", flush=True)


def _machine() -> dict[str, Any]:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "incline_fast": AlignmentMetadata().library_version,
        "backend": explain().partition(":")[0],
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="gemma3", help="gemma3, smollm2 or a folder with a transformers model")
    chosen = parser.parse_args().model
    start = time.perf_counter()
    prepared = prepare(chosen)
    name = prepared.model.resolve().name
    numbers = run(prepared, name)
    numbers["seconds"]["all"] = time.perf_counter() - start
    results = CACHE / "results" / f"{name}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    page = write_report(json.loads(results.read_text(encoding="utf-8")))
    print(f"== done in {numbers['seconds']['all']:.0f} s\n   numbers {results}\n   page    {page}", flush=True)


if __name__ == "__main__":
    main()
