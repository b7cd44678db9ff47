"""lm-evaluation-harness: a model class that edits the last token of every context, and the paper's tasks.

Importing :mod:`incline_fast.evaluation.harness.model` needs ``lm_eval`` (``pip install incline-fast[lm-eval]``); the
command ``incline-fast lm-eval`` imports it before the harness runs.
"""
