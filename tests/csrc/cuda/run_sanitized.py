"""Every kind of call under AddressSanitizer; run by test_decode.py in a process that has loaded its runtime."""

from cuda.decode_cases import KINDS, decode_case
from cuda.launcher import prepare, run_fibers

count = 0
for kind in KINDS:
    for low_rank in (False, True):
        case = decode_case(kind, low_rank, count)
        run_fibers(prepare(case, sanitizer="address"), seed=count, sanitizer="address")
        count += 1
print("checked", count, "cases")
