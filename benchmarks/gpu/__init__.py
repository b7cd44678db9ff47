"""Build, check and measure everything on a GPU with one command: ``make gpu``, or ``python -m benchmarks.gpu``."""
