"""Write docs/decoders.md: every causal-LM type of transformers, and how its residual stream is edited.

    python docs/build_decoders.py

The rows come from tiny random models (tests/helpers/decoder_zoo.py), about a minute on one core. The tests edit every
one of these models, compare it with hooks on its blocks, and compare its row with this page.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "decoders.md"
HEAD = """# Decoders

How `intervene` edits each of the {count} causal-LM types of transformers {version}: {summary}.

- **norm**: every site is a norm that reads the residual stream; the edit happens inside it.
- **norm, hook**: some states are read by no norm, or by one in which an edit gave another result than a hook; these are
  edited by a hook on the block that takes or returns them.
- **hook**: no norm reads the states (post-norm blocks, parallel streams). Where a model carries parallel streams
  (hyper-connections, AltUp), its state is the mean of them, and an edit moves every stream by what it moves the mean.
- **refused**: with this reason. **not built**: the tests have no tiny model of this type, so nothing is known of it
  here; a real one is probed when it is used, and edited or refused by what the probe finds.

Tiny random models of all types but those not built were edited and compared with independent hooks on their blocks: the
logits of every step, the cache, greedy tokens, left- and right-padded batches. Vision, audio and depth parts are not
edited. Written by `python docs/build_decoders.py`.

| type | path | |
| --- | --- | --- |
"""


def main() -> None:
    """Write the page."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
    import decoder_zoo

    rows = [decoder_zoo.row(model_type) for model_type in decoder_zoo.MODEL_TYPES]
    counts = Counter(path for _, path, _ in rows)
    summary = ", ".join(f"{counts[path]} {path}" for path in ("norm", "norm, hook", "hook", "refused", "not built"))
    head = HEAD.format(count=len(rows), version=transformers.__version__, summary=summary)
    PAGE.write_text(head + "".join(f"| {' | '.join(row)} |\n" for row in rows))


if __name__ == "__main__":
    main()
