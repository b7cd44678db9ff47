"""Does it help: tasks, label and continuation scoring, metrics, calibration, controls, intervals, and the search for
the setting that helps most.
"""

from incline_fast.evaluation.bootstrap import Difference, mcnemar, paired_bootstrap
from incline_fast.evaluation.calibration import batch_calibrated, contextual_calibrated, prior_matched
from incline_fast.evaluation.candidates import Setting, Trials
from incline_fast.evaluation.continuations import score_continuations, score_tokens
from incline_fast.evaluation.controls import fit_controls
from incline_fast.evaluation.metrics import (
    accuracy,
    chrf,
    consistent_correct,
    exact_match,
    label_kl,
    label_log_likelihood,
    token_f1,
)
from incline_fast.evaluation.rank import Ranking, rank_languages
from incline_fast.evaluation.scoring import PLAIN, LabelScorer, LabelScores, Variant
from incline_fast.evaluation.tasks import (
    ContinuationTask,
    Development,
    LabelTask,
    TaskError,
    few_shot_template,
    sib200,
    tsv_labels,
    xcopa,
    xwinograd,
)
from incline_fast.evaluation.tune import Tuned, Tuner, tune

__all__ = [
    "PLAIN",
    "ContinuationTask",
    "Development",
    "Difference",
    "LabelScorer",
    "LabelScores",
    "LabelTask",
    "Ranking",
    "Setting",
    "TaskError",
    "Trials",
    "Tuned",
    "Tuner",
    "Variant",
    "accuracy",
    "batch_calibrated",
    "chrf",
    "consistent_correct",
    "contextual_calibrated",
    "exact_match",
    "few_shot_template",
    "fit_controls",
    "label_kl",
    "label_log_likelihood",
    "mcnemar",
    "paired_bootstrap",
    "prior_matched",
    "rank_languages",
    "score_continuations",
    "score_tokens",
    "sib200",
    "token_f1",
    "tsv_labels",
    "tune",
    "xcopa",
    "xwinograd",
]
