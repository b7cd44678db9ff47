"""Regularised least squares and blocked Cholesky, usable alone; nothing here knows of models."""
