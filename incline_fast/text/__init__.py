"""Sentences in, prompts out: parallel text from files, datasets and translation catalogs."""

from incline_fast.text.parallel_text import ParallelText, Problem, Split, TextError

__all__ = ["ParallelText", "Problem", "Split", "TextError"]
