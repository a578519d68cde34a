"""The report's verdicts on studies whose truth is known; see `simulated_studies` and its table."""

import pytest
from simulated_studies import rates

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("pretrainings", [1, 3, 5])
@pytest.mark.parametrize("ratio", [0.0, 1.0, 2.0])
def test_intervals_cover_and_verdicts_are_rarely_false(pretrainings, ratio):
    found = rates(pretrainings, ratio, studies=60)
    assert found.coverage >= 0.93
    assert found.false_pair <= 0.07
    assert found.false_family <= 0.07


def test_a_study_of_one_encoder_says_nothing_of_its_method():
    """What the report does not say: of the method, one encoder is right much too seldom."""
    of_the_method = rates(1, 2.0, studies=60, about_the_method=True)
    assert of_the_method.coverage < 0.85
    assert of_the_method.false_family > 0.15
