"""Sentences in, prompts out: parallel text from files, datasets and translation catalogs."""

from incline_fast.text.parallel_text import ParallelText, Problem, Split, TextError
from incline_fast.text.prompts import DEFAULT_TEMPLATE, PromptError

__all__ = ["DEFAULT_TEMPLATE", "ParallelText", "Problem", "PromptError", "Split", "TextError"]
