"""Executes and judges GPU code on a CPU: CUDA C++ as fibers, PTX in numpy, Triton by way of its PTX; see README.md."""
