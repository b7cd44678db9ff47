"""What the commands of this folder share: the model, the arguments that all have, and the table that they write to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.sib200 import write
from demo.fetch import Prepared, prepare
from incline_fast.bench.machine import cpu_name
from incline_fast.models.identity import identify, weights_hash

__all__ = ["RESULTS", "Run", "start"]

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Run:
    """A command that has begun.

    Attributes:
        prepared: model and texts that were fetched.
        model, tokenizer: of that folder, fp32.
        num_layers: L.
        arguments: of the command.
    """

    prepared: Prepared
    model: Any
    tokenizer: Any
    num_layers: int
    arguments: argparse.Namespace

    def write(self, name: str, rows: Sequence[dict[str, Any]], key: Sequence[str]) -> None:
        """Put rows into ``results/NAME.csv``; they replace this model's rows with the same key."""
        about = {"model": self.prepared.title}
        after = {"weights_hash": weights_hash(self.model), "torch": torch.__version__, "cpu": cpu_name()}
        whole = [about | row | after for row in rows]
        write(self.arguments.results / f"{name}.csv", whole, list(whole[0]), ("model", *key))


def start(description: str | None, parser: argparse.ArgumentParser | None = None) -> Run:
    """Read the arguments and load the model.

    Args:
        description: the command's own docstring.
        parser: with the arguments that it alone has.
    """
    parser = parser or argparse.ArgumentParser()
    parser.description, parser.formatter_class = description, argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="smollm2", help="smollm2, gemma3 or a folder with a transformers model")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    arguments = parser.parse_args()
    prepared = prepare(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(prepared.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(prepared.model)
    return Run(prepared, model, tokenizer, identify(model).num_layers, arguments)
