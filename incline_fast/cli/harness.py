"""The command ``lm-eval``: lm-evaluation-harness, with the model class and the tasks of this package."""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from unittest.mock import patch

import typer

__all__ = ["lm_eval"]


def lm_eval(context: typer.Context) -> None:
    """Run lm-evaluation-harness with the model `incline` and the paper's tasks.

    Everything behind `lm-eval` goes to the harness as it is. `incline` is its model `hf`, edited at the last token of
    every context; tasks are `incline_SET_LANGUAGE`, and `incline_SET` for all languages of a set. Their rows are read
    from the folder that INCLINE_FAST_DATA names.

        INCLINE_FAST_DATA=data incline-fast lm-eval --model incline \\
            --model_args pretrained=MODEL,alignment=fr-en.safetensors,alpha=0.4 \\
            --tasks incline_xcopa_tr --batch_size 16 --device cpu

    The harness's tasks run as well. With an `--include_path` of your own the tasks above are not included.
    """
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as error:
        raise ImportError("lm-eval needs lm-evaluation-harness: pip install incline-fast[lm-eval]") from error
    from incline_fast.evaluation.harness.task_files import write_task_files

    import_module("incline_fast.evaluation.harness.model")  # registers the model class
    given = [*context.args]
    commands = {"run", "ls", "validate"}
    if not commands & set(given[:1]) and given:
        given.insert(0, "run")
    with tempfile.TemporaryDirectory() as folder:
        write_task_files(folder)
        if given and not any(argument.startswith("--include_path") for argument in given):
            given += ["--include_path", folder]
        # The harness reads the arguments of the process.
        with patch.object(sys, "argv", ["lm-eval", *given]):
            cli_evaluate()
