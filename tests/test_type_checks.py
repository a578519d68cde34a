"""The run-time checks that all other tests run under: see `type_checks.py`."""

import numpy as np
import pytest
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from ctssl_jax import log
from ctssl_jax.statistics import few_patients


def test_arrays_of_other_sizes_are_found():
    with pytest.raises(TypeCheckError):
        few_patients.widened(
            few_patients.Interval(0.9, 0.8, 1.0, 2000, 0), "auc", np.arange(4), np.arange(5)
        )


def test_other_types_are_found_where_there_are_no_arrays():
    with pytest.raises(BeartypeCallHintViolation):
        few_patients.wilson("0.9", 10)
    with pytest.raises(BeartypeCallHintViolation):
        log.Throughput(32).step("a second")
