"""How sure a small test set and a few runs let us be.

Three things are left to luck: which patients are in the test set, how a training run went, and how
often we looked. Each has its place, and each result says which of them it covers:

- `bootstrap`: intervals over patients, or over patients and runs, of any contrast of arms and
  sizes: a mean, a difference, a slope against training size, a drop to the smallest size.
- `significance`: p-values of differences over patients (permutation, DeLong), corrected for the
  number of comparisons (Holm).
- `metric`: what the two evaluate: AUC, F1 and accuracy as functions of how often each patient
  counts.

Slices of one patient resemble each other, so everywhere the patient, not the slice, is the unit.
None of it covers another hospital, or another pre-training run where an arm has one.
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
    verdict,
)
from ctssl_jax.statistics.metric import Metric, Statistic, accuracy, auc, f1, roc_auc
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
