"""Metrics, calibrations and intervals against values computed by hand or by another library."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binomtest, norm

from incline_fast.evaluation import (
    accuracy,
    batch_calibrated,
    chrf,
    consistent_correct,
    contextual_calibrated,
    exact_match,
    label_kl,
    label_log_likelihood,
    mcnemar,
    paired_bootstrap,
    prior_matched,
    token_f1,
)
from incline_fast.evaluation.metrics import calibrated_accuracy, metric_named

LOGITS = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.5]])
TARGET = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 0.5]])
ANSWERS = torch.tensor([0, 2, 0])


class TestMetrics:
    def test_of_labels(self) -> None:
        assert accuracy(LOGITS, TARGET, ANSWERS).tolist() == [1, 0, 1]
        p = LOGITS.softmax(-1)
        expected = [math.log(p[0, 0]), math.log(p[1, 2]), math.log(p[2, 0])]
        assert label_log_likelihood(LOGITS, TARGET, ANSWERS).tolist() == pytest.approx(expected, abs=1e-6)
        q = TARGET.softmax(-1)
        kl = [-sum(float(b * (b / a).log()) for a, b in zip(p[i], q[i], strict=True)) for i in range(3)]
        assert label_kl(LOGITS, TARGET, None).tolist() == pytest.approx(kl, abs=1e-6)
        stacked = torch.stack([LOGITS, TARGET])
        assert accuracy(stacked, TARGET, ANSWERS).shape == (2, 3)
        assert label_log_likelihood(stacked, TARGET, ANSWERS).shape == (2, 3)

    def test_calibrated_accuracy_takes_a_label_off_that_is_always_said(self) -> None:
        biased = LOGITS + torch.tensor([0.0, 0.0, 9.0])
        right = batch_calibrated(LOGITS).argmax(-1) == ANSWERS
        assert accuracy(biased, TARGET, ANSWERS).tolist() == [0, 1, 0]
        assert calibrated_accuracy(LOGITS, TARGET, ANSWERS).tolist() == right.float().tolist()
        # A constant for a label is what calibration takes off, but for the softmax over the other labels.
        assert calibrated_accuracy(biased, TARGET, ANSWERS).tolist() != accuracy(biased, TARGET, ANSWERS).tolist()
        assert calibrated_accuracy(torch.stack([LOGITS, biased]), TARGET, ANSWERS).shape == (2, 3)

    def test_chosen_by_name(self) -> None:
        assert metric_named(None, True)[0] == "accuracy"
        assert metric_named(None, False)[0] == "kl"
        assert metric_named(accuracy, True) == ("accuracy", accuracy)
        allowed = "accuracy, calibrated_accuracy, log_likelihood, kl"
        with pytest.raises(ValueError, match=f"metric is 'f1'; allowed: {allowed}"):
            metric_named("f1", True)
        with pytest.raises(ValueError, match="needs answers; there are none"):
            metric_named("accuracy", False)

    def test_consistent_correct(self) -> None:
        assert consistent_correct(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 0, 1, 0])) == 0.25
        with pytest.raises(ValueError, match="expected the same"):
            consistent_correct(torch.ones(2), torch.ones(3))

    def test_of_text(self) -> None:
        assert exact_match("Café, au lait!", ["x", "café au  lait"]) == 1
        assert exact_match("tea", ["coffee"]) == 0
        assert token_f1("the red house", ["a red house", "tea"]) == pytest.approx(2 / 3)
        assert token_f1("", ["tea"]) == 0
        corpus, each = chrf(["the cat", "dog"], ["the cat", "cat"])
        assert float(each[0]) == 100
        assert 0 <= float(each[1]) < 20 < corpus < 100
        with pytest.raises(ValueError, match="1 predictions and 0 references"):
            chrf(["a"], [])


class TestCalibration:
    def test_contextual_makes_the_content_free_prompt_indifferent(self) -> None:
        free = torch.tensor([[3.0, 0.0, 0.0]])
        assert torch.allclose(contextual_calibrated(free, free), torch.zeros(1, 3), atol=1e-6)

    def test_batch_by_hand(self) -> None:
        p = LOGITS.softmax(-1)
        torch.testing.assert_close(batch_calibrated(LOGITS), p.log() - p.mean(0).log())

    @pytest.mark.parametrize("prior", [None, (0.5, 0.3, 0.2)])
    def test_prior_is_met(self, prior: tuple[float, ...] | None) -> None:
        scores = prior_matched(torch.stack([LOGITS, 2 * LOGITS]), prior)
        wanted = torch.tensor(prior or (1 / 3, 1 / 3, 1 / 3))
        torch.testing.assert_close(scores.softmax(-1).mean(1), wanted.expand(2, 3), atol=1e-4, rtol=0)
        # One number per label was added and nothing else.
        shift = scores[0] - LOGITS
        torch.testing.assert_close(shift[:, 1] - shift[:, 0], (shift[0, 1] - shift[0, 0]).expand(3))
        with pytest.raises(ValueError, match="expected 3 positive shares"):
            prior_matched(LOGITS, (0.5, 0.5))


class TestIntervals:
    def test_coverage_is_that_of_the_normal_approximation(self) -> None:
        generator = torch.Generator().manual_seed(0)
        a, b = torch.randn(2, 500, generator=generator)
        found = paired_bootstrap(a + 0.3, b)
        half = norm.ppf(0.975) * float((a - b).std()) / math.sqrt(500)
        assert found.mean == pytest.approx(float((a + 0.3 - b).mean()))
        assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)

    def test_groups_widen_what_repeats(self) -> None:
        a = torch.randn(100, generator=torch.Generator().manual_seed(0))
        alone = paired_bootstrap(a, torch.zeros(100))
        four = paired_bootstrap(a.repeat(4), torch.zeros(400), groups=[str(i) for i in range(100)] * 4)
        assert four.high - four.low == pytest.approx(alone.high - alone.low, rel=0.05)
        assert four.mean == pytest.approx(alone.mean)

    def test_mcnemar_is_the_binomial_test(self) -> None:
        a = torch.tensor([1] * 12 + [0] * 5 + [1] * 30)
        b = torch.tensor([0] * 12 + [1] * 5 + [1] * 30)
        assert mcnemar(a, b) == pytest.approx(binomtest(5, 17).pvalue)
        assert mcnemar(a, a) == 1.0

    def test_errors(self) -> None:
        with pytest.raises(ValueError, match="expected the same"):
            paired_bootstrap(torch.ones(2), torch.ones(3))
        with pytest.raises(ValueError, match="groups has 1 names"):
            paired_bootstrap(torch.ones(2), torch.ones(2), groups=["a"])
