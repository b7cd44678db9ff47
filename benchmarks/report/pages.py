"""Write the tables of README.md, docs/serving.md, docs/lm_eval.md and docs/benchmarks/ from the CSVs.

python -m benchmarks.report.pages            # rewrite what lies between the markers
python -m benchmarks.report.pages --check    # exit 1 if that would change a file

A block begins with the line ``<!-- begin NAME: ... -->`` and ends with ``<!-- end NAME -->``; what lies between is
generated. Numbers are never typed: a cell without a row in the CSV stays empty.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report.accuracy_tables import accuracy_blocks
from benchmarks.report.call_tables import call_blocks
from benchmarks.report.cost_tables import cost_blocks
from benchmarks.report.intervene_tables import intervene_blocks
from benchmarks.report.lm_eval_tables import lm_eval_blocks
from benchmarks.report.markdown import table as markdown
from benchmarks.report.paper_tables import paper_blocks
from benchmarks.report.plots import picture_of
from benchmarks.report.serving_tables import serving_blocks
from benchmarks.report.solver_tables import solver_blocks
from incline_fast.bench import Timing, read_csv
from incline_fast.files import replacing

__all__ = ["Results", "blocks", "main", "rewritten"]

ROOT = Path(__file__).parents[2]
CSV = ROOT / "benchmarks" / "results" / "cpu-intel-xeon.csv"
PAGES = ROOT / "docs" / "benchmarks"
DOCUMENTS = (
    ROOT / "README.md",
    ROOT / "docs" / "serving.md",
    ROOT / "docs" / "lm_eval.md",
    *(
        PAGES / f"{name}.md"
        for name in (
            "fused_op",
            "cholesky",
            "least_squares",
            "solver",
            "accuracy",
            "paper",
            "intervene",
            "call",
            "cost",
        )
    ),
)
SHOWN = (("dense-bf16", 1), ("dense-fp32", 1))
"""Tables whose picture the page shows; the others can be drawn by ``python -m benchmarks.report.plots``."""
OURS = "fused_in_place"
WIDTHS = (1024, 2048, 4096)
FORMS = (("dense", "dense", "Dense"), ("low-rank", "64", "Rank 64"), ("low-rank", "500", "Rank 500"))


class Results:
    """The rows of a CSV, found by table, threads, provider and shape."""

    def __init__(self, rows: Sequence[Timing]) -> None:
        self.rows = rows
        self._index = {(r.table, r.threads, provider(r), r.shape): r for r in rows}

    def find(self, table: str, threads: int, name: str, shape: str) -> Timing | None:
        """The row, None if it was not measured; a shape is in the words of ``Timing.shape``."""
        return self._index.get((table, threads, name, shape))

    def ours(self, table: str, threads: int, shape: str) -> Timing | None:
        """Our in-place op."""
        return self.find(table, threads, OURS, shape)

    def tokens(self, table: str, threads: int) -> list[int]:
        """The numbers of tokens of a table, ascending."""
        return sorted({r.num_tokens for r in self.rows if (r.table, r.threads) == (table, threads)})


def provider(row: Timing) -> str:
    """A backend without its instruction set or remark: "fused[avx2]" is "fused"."""
    return re.split(r"[\[ ]", row.backend)[0]


def times(ratio: float | None) -> str:
    """1.234 as "1.23x"."""
    return "" if ratio is None else f"{ratio:.2f}x"


def with_roofline(row: Timing | None) -> str:
    """Eager's time over ours, and our share of the roofline."""
    if row is None:
        return ""
    return times(row.ratio_vs_eager) + ("" if row.pct_roofline is None else f" ({row.pct_roofline:.0f}%)")


def performance(results: Results) -> str:
    """README.md: one thread at d = 2048, and where eager wins at that width."""
    columns = [("dense", "fp32"), ("dense", "bf16"), ("low-rank", "fp32"), ("low-rank", "bf16")]
    dtypes = {"fp32": "float32", "bf16": "bfloat16"}

    def cell(form: str, dtype: str, tokens: int) -> str:
        rank = "dense" if form == "dense" else "64"
        shape = f"rms {tokens} 2048 {rank} {dtypes[dtype]} {dtypes[dtype]} dram"
        row = results.ours(f"{form}-{dtype}", 1, shape)
        return "" if row is None else times(row.ratio_vs_eager)

    lines = [[str(m), *(cell(*column, m) for column in columns)] for m in (1, 4, 32, 128)]
    heads = ["tokens", "fp32 dense", "bf16 dense", "fp32 rank 64", "bf16 rank 64"]
    return "\n".join(part for part in (_without_empty_columns(heads, lines), losses(results, 2048)) if part)


def losses(results: Results, width: int | None = None) -> str:
    """Where our in-place op is slower than eager: every such shape, or those of one width and the best kernels."""
    slower: dict[str, dict[str, str]] = {}
    for row in results.rows:
        if provider(row) != OURS or row.mode != "dram" or row.ratio_vs_eager is None or row.ratio_vs_eager >= 1:
            continue
        forced = f", {row.table.partition('@')[2]} forced" if "@" in row.table else ""
        if width is not None and (row.hidden_size != width or forced):
            continue
        rank = "dense" if row.rank is None else f"rank {row.rank}"
        kind = f"{row.norm}, {rank}, {row.dtype}, map {row.map_dtype}, {row.threads} thread(s){forced}"
        # A shape that several tables have is named once, with the ratio of the first.
        slower.setdefault(kind, {}).setdefault(f"{row.num_tokens} x {row.hidden_size}", times(row.ratio_vs_eager))
    which = "every measured shape" if width is None else f"every measured shape at d = {width}"
    if not slower:
        return f"Losing regimes: none, {which} is at least as fast as eager.\n"
    lines = [f"- {kind}: {', '.join(map(' '.join, shapes.items()))}" for kind, shapes in slower.items()]
    return f"Losing regimes, tokens x hidden size ({which} that is slower than eager):\n\n" + "\n".join([*lines, ""])


def matrix(results: Results, table: str, threads: int, kind: str, rank: str = "dense") -> str:
    """One table of the kernels: the ratio to eager over tokens and widths, then the peers at d = 2048."""

    def row(tokens: int, width: int, mode: str = "dram") -> Timing | None:
        return results.ours(table, threads, f"rms {tokens} {width} {rank} {kind} {mode}")

    def line(tokens: int) -> list[str]:
        middle = row(tokens, 2048)
        peers = (middle.ratio_vs_hook, middle.ratio_vs_simd_ml_kernels) if middle else (None, None)
        cached = [with_roofline(row(tokens, width, "cache")) for width in (1024, 2048)]
        return [str(tokens), *(with_roofline(row(tokens, w)) for w in WIDTHS), *map(times, peers), *cached]

    head = [
        "tokens",
        *(f"d = {w}" for w in WIDTHS),
        "hook, 2048",
        "simd-ml-kernels, 2048",
        "cache, 1024",
        "cache, 2048",
    ]
    return _without_empty_columns(head, [line(m) for m in results.tokens(table, threads)])


def _without_empty_columns(head: list[str], lines: list[list[str]]) -> str:
    full = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines)]
    return markdown([head[i] for i in full], [[line[i] for i in full] for line in lines])


def compared(results: Results, tables: dict[str, str], ratio: Callable[[Timing], float | None], width: int) -> str:
    """Ratios to one other provider at one width, a column per dtype; ``tables`` says where each dtype is."""

    def cell(dtype: str, tokens: int) -> str:
        row = results.ours(tables[dtype], 1, f"rms {tokens} {width} dense {dtype} {dtype} dram")
        return "" if row is None else times(ratio(row))

    tokens = sorted({m for table in tables.values() for m in results.tokens(table, 1)})
    return markdown(["tokens", *tables], [[str(m), *(cell(dtype, m) for dtype in tables)] for m in tokens])


def overhead(results: Results) -> str:
    """Microseconds of a call at d = 64."""
    rows = {(provider(r), r.dtype): r for r in results.rows if r.table == "overhead"}
    names = list(dict.fromkeys(name for name, _ in rows))
    cells = [
        [name, *(f"{rows[name, t].us_p50:.1f}" for t in ("float32", "bfloat16") if (name, t) in rows)] for name in names
    ]
    return markdown(["", "fp32, µs", "bf16, µs"], cells)


def by_shape(results: Results, table: str) -> str:
    """A table whose problems have little in common, one line each."""
    shapes = dict.fromkeys(r.shape for r in results.rows if r.table == table)
    return markdown(["shape", "vs eager"], [[s, with_roofline(results.ours(table, 1, s))] for s in shapes])


def picture(table: str, threads: int) -> str:
    """The picture of a table, where the page shows one."""
    name = picture_of(CSV, table, threads)
    return f"\n![{table}, {threads} thread(s)](plots/{name})\n" if (table, threads) in SHOWN else ""


def kernels(results: Results) -> str:
    """docs/benchmarks/fused_op.md: every table of the fused op that has rows."""
    parts: list[tuple[str, str]] = []
    for isa, threads in (("", 1), ("", 2), ("avx512", 1), ("avx2", 1), ("scalar", 1)):
        where = f"{threads} thread{'s' if threads > 1 else ''}" + (f", {isa} forced" if isa else "")
        suffix = f"@{isa}" if isa else ""
        for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")):
            for form, rank, title in FORMS:
                table = f"{form}-{name}{suffix}"
                text = matrix(results, table, threads, f"{dtype} {dtype}", rank)
                parts.append((f"{title}, {name}, {where}", text + picture(table, threads) if text else ""))
        table = f"int8{suffix}"
        title = f"int8 maps, bf16 states, {where}; eager reads the map in bf16"
        parts.append((title, matrix(results, table, threads, "bfloat16 int8")))
    compiled = {"float32": "compile", "bfloat16": "compile"}
    tuned = {"float32": "max-autotune-fp32", "bfloat16": "max-autotune-bf16"}
    parts += [
        ("Against torch.compile, dense, d = 2048", compared(results, compiled, lambda r: r.ratio_vs_compile, 2048)),
        (
            "Against torch.compile with max-autotune and frozen weights, dense, d = 4096",
            compared(results, tuned, lambda r: r.ratio_vs_max_autotune, 4096),
        ),
        ("What a call costs among other calls: d = 64, one token, cached map", overhead(results)),
        ("Mixed dtypes and LayerNorm", by_shape(results, "mixed")),
        ("Whole prompts, every token edited, one thread", by_shape(results, "prompts")),
    ]
    shown = [f"**{title}**\n\n{text}" for title, text in parts if text]
    return "\n".join([*shown, losses(results)])


def blocks(results: Results) -> dict[str, str]:
    """Every generated block by name."""
    return (
        {"performance": performance(results), "kernels": kernels(results)}
        | solver_blocks()
        | accuracy_blocks()
        | paper_blocks()
        | intervene_blocks()
        | call_blocks()
        | serving_blocks()
        | cost_blocks()
        | lm_eval_blocks()
    )


def rewritten(text: str, generated: dict[str, str]) -> str:
    """The text with its blocks filled.

    Raises:
        ValueError: a block that nothing generates, or one without its end.
    """

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in generated:
            raise ValueError(f'block "{name}" is not one of {", ".join(generated)}')
        return f"{match['begin']}\n{generated[name]}\n{match['end']}"

    pattern = r"(?P<begin><!-- begin (?P<name>[\w-]+)[^\n]*-->\n)(?:.*?\n)?(?P<end><!-- end (?P=name) -->)"
    filled = re.sub(pattern, fill, text, flags=re.DOTALL)
    begins, ends = filled.count("<!-- begin "), len(re.findall(pattern, filled, flags=re.DOTALL))
    if begins != ends:
        raise ValueError(f"{begins} blocks begin and {ends} of them end")
    return filled


def main(arguments: Sequence[str]) -> int:
    """Rewrite the documents, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is out of date")
    check = parser.parse_args(arguments).check
    generated = blocks(Results(read_csv(CSV)))
    stale = 0
    for path in DOCUMENTS:
        text = path.read_text()
        new = rewritten(text, generated)
        if new == text:
            continue
        stale = 1
        if check:
            print(f"{path} is out of date: run python -m benchmarks.report.pages", file=sys.stderr)
        else:
            with replacing(path) as temporary:
                temporary.write_text(new)
    return stale if check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
