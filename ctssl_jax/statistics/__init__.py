"""How sure a small test set and a few runs let us be.

Four things are left to luck: which patients are in the test set, how a fine-tuning went, how a
pre-training went, and how often we looked. Each has its place, and each result says which of them
it covers:

- `bootstrap`: intervals over patients, or over patients and training again, of any contrast of arms
  and sizes: a mean, a difference, a slope against training size, a drop to the smallest size.
- `few_patients`: what such an interval is at least, near 0 or 1.
- `levels`: the errors of training again, over fine-tunings and over pre-trainings, and a p of all
  levels together.
- `significance`: p-values of differences over patients (permutation, DeLong), corrected for the
  number of comparisons (Holm).
- `metric`, `decision`: what the two evaluate, as functions of how often each patient counts: AUC,
  F1, accuracy; sensitivity and specificity at thresholds of validation, Brier score, calibration.

Slices of one patient resemble each other, so everywhere the patient, not the slice, is the unit.
None of it covers another hospital, or pre-training again where an arm has one pre-training: the
result is then about this encoder, not about the method.
"""

from ctssl_jax.statistics.bootstrap import (
    Difference,
    Interval,
    Spread,
    bootstrap_interval,
    contrast,
    drop,
    mean_and_range,
    paired_bootstrap_difference,
    resampled,
    slope,
    spread_over_patients,
    trained_again,
    verdict,
)
from ctssl_jax.statistics.decision import (
    BINS,
    bins_of,
    brier,
    calibration,
    sensitivity,
    specificity,
    threshold_at_sensitivity,
    threshold_at_specificity,
)
from ctssl_jax.statistics.few_patients import widened
from ctssl_jax.statistics.levels import Error, Runs, Training, training, two_sided_p
from ctssl_jax.statistics.metric import Metric, Statistic, accuracy, auc, f1, roc_auc, within_folds
from ctssl_jax.statistics.significance import (
    DeLong,
    Permutation,
    delong,
    delong_difference,
    flip_p_values,
    holm,
    permutation_difference,
    swap_contributions,
)
