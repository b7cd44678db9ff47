"""The main job on real input: ``python -m demo.run --model smollm2 | gemma3 | <directory> [--data DIR]``.

Learns maps from several languages to English in the prompt of a task, chooses their settings on development rows,
measures accuracy, divergence and time on rows that nothing was chosen on, and writes ``demo/report.html``. The numbers
are kept in a JSON file, from which ``python -m demo.report`` makes the page again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from demo.experiment import LANGUAGES, changed_answers, measure, read_task
from demo.fetch import CACHE, Prepared, prepare
from demo.latency import measure_latency
from demo.report import write_report
from incline_fast import AlignmentMetadata, explain
from incline_fast.bench.machine import cpu_name
from incline_fast.evaluation.comparison import INCLINE
from incline_fast.text.prompts import fill

__all__ = ["run"]


def run(prepared: Prepared, name: str, data: Path | None = None) -> dict[str, Any]:
    """Everything that the report tells, as plain values."""
    clock = _Clock()
    machine = _machine()
    with clock("load the model"):
        model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(prepared.model)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        tasks = read_task(prepared, data)
    with clock("learn maps, choose their settings, measure on test rows"):
        found = measure(model, tokenizer, tasks, CACHE / "states" / name)
    english = found.english.task.sentences
    examples, artifacts = {}, {}
    for language, scores in found.scores.items():
        chosen = next(variant for variant in scores.variants if variant.name == INCLINE)
        assert chosen.alignment is not None
        path = CACHE / "alignments" / f"{name}-{language}-en.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        chosen.alignment.save(path)
        artifacts[language] = path.name
        examples[language] = changed_answers(found, english, language)
    with clock("latency"):
        first = next(iter(found.scores.values()))
        maps = next(variant for variant in first.variants if variant.name == INCLINE).alignment
        prompt = fill(first.task.template, first.task.sentences[0])
        latency = measure_latency(model, tokenizer, maps, found.chosen[0].alpha, prompt)
    return {
        "model": prepared.title,
        "licence": prepared.licence,
        "task": first.task.name,
        "labels": list(first.task.labels),
        "template": first.task.template,
        "languages": {language: LANGUAGES.get(language, language) for language in found.scores},
        "chosen": [str(setting) for setting in found.chosen],
        "rows": found.rows,
        "oracle": {language: {str(k): list(v) for k, v in sites.items()} for language, sites in found.oracle.items()},
        "examples": examples,
        "artifacts": artifacts,
        "latency": latency,
        "seconds": clock.seconds,
        "machine": machine,
    }


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
    return {
        "cpu": cpu_name(),
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
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--data", type=Path, help="folder with the folders of SIB-200: its topics instead of emoji")
    arguments = parser.parse_args()
    start = time.perf_counter()
    prepared = prepare(arguments.model)
    name = prepared.model.resolve().name + ("" if arguments.data is None else "-sib200")
    numbers = run(prepared, name, arguments.data)
    numbers["seconds"]["all"] = time.perf_counter() - start
    results = CACHE / "results" / f"{name}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    page = write_report(json.loads(results.read_text(encoding="utf-8")))
    print(f"== done in {numbers['seconds']['all']:.0f} s\n   numbers {results}\n   page    {page}", flush=True)


if __name__ == "__main__":
    main()
