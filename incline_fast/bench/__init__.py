"""Timing of the fused ops against plain PyTorch and its peers, on this machine: the body of ``incline-fast bench``.

Every provider computes the same problem. In mode ``dram`` every call reads another copy of the weights, as a model's
layers do; in mode ``cache`` all calls read the same one.
"""

from incline_fast.bench.command import main
from incline_fast.bench.problems import Data, Problem
from incline_fast.bench.providers import PROVIDERS
from incline_fast.bench.rows import Timing, merged, read_csv, write_csv
from incline_fast.bench.tables import TABLES, Table
from incline_fast.bench.timing import measure, with_roofline

__all__ = [
    "PROVIDERS",
    "TABLES",
    "Data",
    "Problem",
    "Table",
    "Timing",
    "main",
    "measure",
    "merged",
    "read_csv",
    "with_roofline",
    "write_csv",
]
