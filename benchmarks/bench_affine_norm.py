"""Time affine_rms_norm and affine_layer_norm against plain PyTorch: python benchmarks/bench_affine_norm.py --quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from incline_fast.bench import main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few shapes, under a minute")
    parser.add_argument("--output", type=Path, help="write the rows as CSV")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's pool")
    arguments = parser.parse_args()
    main(quick=arguments.quick, output=arguments.output, threads=arguments.threads)
