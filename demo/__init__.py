"""The demo: learn maps between languages on a real model, apply them, measure, and write a page about it."""
