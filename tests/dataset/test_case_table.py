"""Which records are the slices of which case."""

import numpy as np
import pytest

from ctssl_jax.dataset.cases import case_of, case_table, case_word
from ctssl_jax.errors import DataError

LABELS = np.array([1, 0, 1, 0, 1, 1])
PATIENTS = np.array(["p", "q", "p", "q", "p", "p"])
NAMES = np.array(["b", "a", "b", "a", "", "b"])
ORDER = np.array([2, 0, 1, 0, 0, 1])


def test_cases_come_by_their_first_record_and_slices_by_their_order():
    table = case_table(LABELS, PATIENTS, NAMES, ORDER)
    assert table.names.tolist() == ["b", "a", ""]
    assert table.labels.tolist() == [1, 0, 1]
    assert table.patients.tolist() == ["p", "q", "p"]
    assert [rows.tolist() for rows in table.rows] == [[2, 5, 0], [1, 3], [4]]
    assert table.records.tolist() == [0, 1, 4]
    assert table.slices == 6


def test_without_names_the_cases_are_the_records():
    table = case_table(LABELS, PATIENTS, np.full(6, ""), ORDER)
    np.testing.assert_array_equal(table.labels, LABELS)
    assert [rows.tolist() for rows in table.rows] == [[n] for n in range(6)]


def test_some_of_the_cases():
    table = case_table(LABELS, PATIENTS, NAMES, ORDER).take(np.array([0, 2]))
    assert table.names.tolist() == ["b", ""]
    assert table.slice_rows().tolist() == [0, 2, 4, 5]


@pytest.mark.parametrize("what", ["labels", "patients"])
def test_slices_that_disagree_are_refused(what):
    arrays = {"labels": LABELS.copy(), "patients": PATIENTS.copy()}
    arrays[what][3] = arrays[what][0]
    with pytest.raises(DataError, match=f"slices of a case have different {what}"):
        case_table(arrays["labels"], arrays["patients"], NAMES, ORDER)


def test_older_datasets_and_runs_know_slices():
    assert (case_of({}), case_word({})) == ("slice", "slice")
    assert case_word({"case": {"of": "folder", "word": "nodule"}}) == "nodule"
