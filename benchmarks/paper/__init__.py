"""Tables and figures of the INCLINE paper, and what its neighbours report, as one command each.

python -m benchmarks.paper.retrieval    sentence retrieval per layer: maps beside centring and whitening
python -m benchmarks.paper.figures      accuracy over pairs (figure 3a), over alpha (figure 4), by estimator, by preset,
                                        and of rivals: a projection onto the languages' means, single attention heads
python -m benchmarks.paper.code         JavaScript to Python: retrieval, and what a function returns
"""
