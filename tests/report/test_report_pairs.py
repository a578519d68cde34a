"""Pairs of arms and robustness in the report, against known answers and the library."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import linregress
from test_report import edit_json, write_finetuning

from ctssl_jax.report import write_report
from ctssl_jax.report.comparison.compare import compare
from ctssl_jax.report.comparison.pairs import Question, Sampled, answered, interval
from ctssl_jax.report.runs import FROZEN, find_runs
from ctssl_jax.report.sections.findings import claim_sentences, lead, p_value, pair_rows
from ctssl_jax.statistics import (
    Runs,
    accuracy,
    auc,
    bootstrap_interval,
    contrast,
    flip_p_values,
    holm,
    paired_bootstrap_difference,
    permutation_difference,
    resampled,
    spread_over_patients,
    trained_again,
    two_sided_p,
    widened,
)

pytestmark = pytest.mark.usefixtures("undrawn")

SKILLS = {  # at 10, 40 and 100 % of the data: SparK loses least, scratch most, the others between
    "scratch": (0.2, 1.0, 2.0),
    "spark": (1.6, 1.8, 2.0),
    "moco": (0.9, 1.4, 2.0),
    "byol": (0.9, 1.5, 2.0),
}


def write_arms(root, seeds=3, skills=SKILLS):
    for arm, of_arm in skills.items():
        for fraction, skill in zip((0.1, 0.4, 1.0), of_arm, strict=False):
            for seed in range(seeds):
                folder = root / f"{arm}-{fraction}-{seed}"
                write_finetuning(folder, arm=arm, fraction=fraction, seed=seed, skill=skill)
    return root


def task_of(root):
    (task,) = compare(find_runs([root])).tasks
    return task


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_arms(tmp_path_factory.mktemp("arms"))


@pytest.fixture(scope="module")
def task(root):
    return task_of(root)


def mean_auc(task, arm, fraction):
    (cell,) = [cell for cell in task.cells if (cell.arm, cell.fraction) == (arm, fraction)]
    return cell.spread("auc").mean


def cases_of(task, *places):
    """Labels, patients and scores [run, case, class] of arms at sizes."""
    cells = {(cell.arm, cell.fraction): cell for cell in task.cells}
    scores = [np.stack([run.cases.scores for run in cells[place].runs]) for place in places]
    cases = task.runs()[0].cases
    return cases.labels, cases.patients, *scores


def test_every_two_arms_of_a_size_are_compared_once(task):
    names = [("spark", "moco"), ("spark", "byol"), ("spark", "scratch")]
    names += [("moco", "byol"), ("moco", "scratch"), ("byol", "scratch")]
    expected = [(fraction, *pair) for fraction in (0.1, 0.4, 1.0) for pair in names]
    assert [(pair.fraction, pair.a, pair.b) for pair in task.pairs] == expected
    for pair in task.pairs:
        gap = mean_auc(task, pair.a, pair.fraction) - mean_auc(task, pair.b, pair.fraction)
        assert pair.difference.estimate == pytest.approx(gap, abs=1e-12)
        assert pair.parts.sum() == pytest.approx(gap, abs=1e-12)


def test_p_is_the_larger_of_two_and_corrected_within_its_family(task):
    pair = task.pairs[1]
    labels, patients, a, b = cases_of(task, (pair.a, 0.1), (pair.b, 0.1))
    swapped = permutation_difference(labels, a, b, patients).p
    tables, who = [resampled(labels, x, patients) for x in (a, b)], runs_of("spark", "byol")
    errors = trained_again(tables, [1, -1], who)
    levels = two_sided_p(pair.difference.estimate, over_patients(tables, who), errors)
    assert pair.answer.p == pytest.approx(max(swapped, levels), rel=1e-12)
    for against_scratch in (True, False):
        family = [p for p in task.pairs if (p.b == "scratch") == against_scratch]
        assert len(family) == 9
        adjusted = holm(np.array([pair.answer.p for pair in family]))
        np.testing.assert_allclose([pair.adjusted for pair in family], adjusted)


def runs_of(*arms, seeds=(0, 1, 2)):
    """As `write_arms` writes them: one encoder, but for scratch."""
    return [
        Runs(arm, tuple(seeds), (None if arm == "scratch" else "feed" * 4,) * len(seeds))
        for arm in arms
    ]


def over_patients(tables, who):
    return spread_over_patients(tables, [1, -1], who)


def test_intervals_of_pairs_cover_patients_and_runs(task):
    pair = task.pairs[1]
    labels, patients, a, b = cases_of(task, (pair.a, 0.1), (pair.b, 0.1))
    alone = paired_bootstrap_difference(labels, a, b, patients)[:5]
    np.testing.assert_allclose(pair.answer.over_patients, alone, atol=1e-12)
    tables, who = (
        [resampled(labels, scores, patients) for scores in (a, b)],
        runs_of("spark", "byol"),
    )
    again = trained_again(tables, [1, -1], who)
    assert (again.fine_tunings, again.pretrainings) == (True, False)
    assert [error.freedom for error in again.errors] == [2]
    expected = contrast(tables, [1, -1], of=who, again=again)
    np.testing.assert_allclose(pair.difference[:5], expected, atol=1e-12)
    assert expected.low < pair.answer.over_patients.low


def test_a_verdict_needs_the_corrected_p_and_the_interval(task):
    for pair in task.pairs:
        clear = pair.difference.low > 0 and pair.answer.over_patients.low > 0
        clear = clear and pair.adjusted < 0.05
        assert (pair.difference.verdict == "A higher") == clear


def test_neither_the_interval_nor_p_decides_alone(task):
    labels, patients, *scores = cases_of(task, ("spark", 0.1), ("scratch", 0.1))
    cells = [
        next(cell for cell in task.cells if (cell.arm, cell.fraction) == (arm, 0.1))
        for arm in ("spark", "scratch")
    ]
    tables = [resampled(labels, x, patients) for x in scores]
    of = [Sampled(cell.runs, {"auc": table}) for cell, table in zip(cells, tables, strict=True)]
    (pair,) = [p for p in task.pairs if (p.a, p.b, p.fraction) == ("spark", "scratch", 0.1)]
    scattered = np.random.default_rng(0).permutation(np.resize([1.0, -1.0], len(pair.parts)))
    asked = [Question(of, (1, -1), parts) for parts in (pair.parts, scattered, np.nan * scattered)]
    said = [answered([each])[0].difference.verdict for each in asked]
    assert said == ["A higher", "cannot tell", "cannot tell"]
    same = answered([Question([of[0], of[0]], (1, -1), pair.parts)])[0]
    assert same.difference.verdict == "cannot tell"


def test_intervals_of_cells_are_each_of_their_own_metric(task):
    labels, patients, scores = cases_of(task, ("moco", 0.4))
    (cell,) = [cell for cell in task.cells if (cell.arm, cell.fraction) == ("moco", 0.4)]
    for name, metric in (("auc", auc), ("accuracy", accuracy)):
        alone = bootstrap_interval(labels, scores, patients, metric)
        found = cell.interval(name)
        sampled = Sampled(cell.runs, {name: resampled(labels, scores, patients, metric)})
        both, over_patients, again = interval([sampled], [1], name)
        assert found == widened(both, name, labels, patients)
        np.testing.assert_allclose(over_patients, alone, atol=1e-12)
        assert found.low < alone.low < alone.high < found.high
        assert again.fine_tunings


def test_the_table_of_cells_shows_what_the_pair_with_scratch_found(task):
    pairs = {(pair.fraction, pair.a): pair for pair in task.pairs if pair.b == "scratch"}
    assert len(task.comparisons()) == len(pairs) == 9
    for cell in task.comparisons():
        assert cell.difference is pairs[cell.fraction, cell.arm].difference
        assert cell.ahead == pairs[cell.fraction, cell.arm].ahead


def test_two_seeds_give_intervals_over_patients_and_say_so(tmp_path):
    write_arms(tmp_path, seeds=2, skills={"scratch": (0.3, 1.0), "spark": (1.5, 1.9)})
    task = task_of(tmp_path)
    for pair in task.pairs:
        assert not pair.answer.again.errors
        assert pair.difference[:5] == pair.answer.over_patients
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    # Of each cell, of its difference, in the table of pairs, and of each course.
    assert html.count("over patients alone</small>") == 4 + 2 + 2 + 2
    assert "over patients alone" in claim_sentences(task)[0]


def test_slopes_and_drops_are_of_the_mean_aucs(task):
    found = task.robustness
    assert (found.smallest, found.largest) == (0.1, 1.0)
    assert [course.arm for course in found.courses] == list(SKILLS)
    for course in found.courses:
        means = [mean_auc(task, course.arm, fraction) for fraction in (0.1, 0.4, 1.0)]
        line = linregress(np.log2([42, 170, 425]), means)
        assert course.slope.estimate == pytest.approx(line.slope, abs=1e-12)
        assert course.drop.estimate == pytest.approx(means[2] - means[0], abs=1e-12)
        assert course.slope.low < course.slope.estimate < course.slope.high
        assert course.again.fine_tunings


def test_the_claim_is_the_difference_of_drops_with_its_own_test(task):
    drops = {course.arm: course.drop.estimate for course in task.robustness.courses}
    claims = task.robustness.claims
    assert [(claim.a, claim.b) for claim in claims] == [
        ("spark", arm) for arm in ("scratch", "moco", "byol")
    ]
    pairs = {(pair.fraction, pair.b): pair for pair in task.pairs if pair.a == "spark"}
    for claim in claims:
        gap = drops[claim.b] - drops["spark"]
        parts = pairs[0.1, claim.b].parts - pairs[1.0, claim.b].parts
        assert claim.answer.difference.estimate == pytest.approx(gap, abs=1e-12)
        assert parts.sum() == pytest.approx(gap, abs=1e-12)
    np.testing.assert_allclose(
        [claim.answer.adjusted for claim in claims],
        holm(np.array([claim.answer.p for claim in claims])),
    )
    by_arm = {claim.b: claim for claim in claims}
    assert by_arm["scratch"].answer.difference.verdict == "A higher"
    gap = by_arm["scratch"].answer.difference
    assert claim_sentences(task)[0] == (
        f"This SparK encoder loses {gap.estimate:.3f} less AUC than training from scratch "
        f"({gap.low:.3f} to {gap.high:.3f}, {p_value(by_arm['scratch'].answer.adjusted)}, over "
        "patients and fine-tunings)."
    )


def test_a_claim_turned_round_says_so(tmp_path):
    write_arms(tmp_path, skills={"spark": (0.2, 1.0, 2.5), "moco": (2.5, 2.5, 2.5)})
    task = task_of(tmp_path)
    (claim,) = task.robustness.claims
    assert claim.answer.difference.verdict == "B higher"
    (sentence,) = claim_sentences(task)
    gap = -claim.answer.difference.estimate
    assert sentence.startswith(
        f"This SparK encoder loses {gap:.3f} more AUC than this MoCo v2 encoder"
    )
    (words,) = lead(task)
    assert words == (
        "Robustness, from 100 % to 10 % of the training data: this SparK encoder loses more than "
        "this MoCo v2 encoder."
    )


def test_equal_arms_cannot_be_told_apart(tmp_path):
    write_arms(tmp_path, skills={"scratch": (1.0, 1.5), "spark": (1.0, 1.5)})
    task = task_of(tmp_path)
    assert {pair.difference.verdict for pair in task.pairs} == {"cannot tell"}
    few, all_of_them = task.pairs
    (claim,) = task.robustness.claims
    assert claim.answer.p >= flip_p_values((few.parts - all_of_them.parts)[:, None])[0]
    assert claim.answer.p > 0.05
    (sentence,) = claim_sentences(task)
    assert sentence.startswith(
        "This SparK encoder and training from scratch cannot be told apart in what they"
    )
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert sentence in html
    assert lead(task)[0] in html


def test_an_arm_without_every_size_is_left_out_of_robustness_by_name(tmp_path):
    write_arms(tmp_path, skills={"scratch": (0.5, 1, 2), "spark": (1, 1, 2), "byol": (1.0,)})
    found = task_of(tmp_path).robustness
    assert found.left_out == ("byol",)
    assert [course.arm for course in found.courses] == ["scratch", "spark"]
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "Left out, for want of a run at every size: BYOL." in html


def test_one_size_has_no_robustness_and_one_arm_no_pair(tmp_path):
    write_arms(tmp_path, skills={"scratch": (0.5,)})
    task = task_of(tmp_path)
    assert task.robustness is None
    assert task.pairs == ()
    assert lead(task) == claim_sentences(task) == []
    write_report([tmp_path], tmp_path / "out")
    html = (tmp_path / "out/report.html").read_text()
    assert "Robustness" not in html
    assert "Every two arms" not in html


def test_sizes_that_are_the_same_slices_have_no_slope(tmp_path):
    """Two fractions of a very small set may come to the same number of slices."""
    write_arms(tmp_path, skills={"scratch": (0.5, 1.0), "spark": (1.0, 1.5)})
    for run in find_runs([tmp_path]):
        edit_json(run.folder / "results.json", train_slices=42)
    assert task_of(tmp_path).robustness is None


def test_the_page_has_a_table_of_all_pairs_and_names_its_family(root, task, tmp_path):
    write_report([root], tmp_path)
    html = (tmp_path / "report.html").read_text()
    assert "the 9 with training from scratch and the 9 of pre-trained starts with each" in html
    assert "for the 3 comparisons with SparK" in html
    assert "This page makes 18 comparisons of starts." in html
    for a, b, found in pair_rows(task):
        assert f"{a}<small>minus {b}</small>" in html
        assert "(one encoder)" in a
        for pair in found.values():
            assert p_value(pair.adjusted).replace("<", "&lt;") in html
    assert lead(task)[0] in html
    assert all(sentence.replace("<", "&lt;") in html for sentence in claim_sentences(task))


def test_p_is_never_written_as_zero():
    assert [p_value(p) for p in (0.00049, 0.0005, 0.0123, 1.0, np.nan)] == [
        "p < 0.001",
        "p = 0.001",
        "p = 0.012",
        "p = 1.000",
        "p not known",
    ]


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_nothing_is_called_higher_without_the_luck_of_fine_tuning(tmp_path, seeds):
    """Two starts that patients alone would tell apart, at each number of repeats."""
    for seed in range(seeds):
        for arm, skill in (("scratch", 0.1), ("spark", 2.5)):
            write_finetuning(tmp_path / "runs" / f"{arm}{seed}", arm=arm, seed=seed, skill=skill)
    (task,) = compare(find_runs([tmp_path / "runs"])).tasks
    (pair,) = task.pairs
    assert pair.adjusted < 0.05 < 0.1 < pair.difference.low
    few = "fewer than three repeats"
    assert (pair.difference.verdict == "A higher") == pair.answer.repeated == (seeds == 3)
    write_report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    table = (tmp_path / "out" / "figures" / "differences-1.csv").read_text()
    assert ("Cannot tell: this SparK encoder" in page) == (seeds < 3)
    assert (f"cannot tell: {few}" in page) == (f"cannot tell: {few}" in table) == (seeds < 3)
    assert ("this SparK encoder higher" in page) == (seeds == 3)
    assert ("encoder higher" in table) == (seeds == 3)


@pytest.mark.parametrize(
    ("arm", "fraction", "told"),
    [("spark", 1.0, True), ("spark", 0.5, False), ("random", 1.0, False)],
)
def test_frozen_features_of_the_whole_split_have_no_luck_of_training(tmp_path, arm, fraction, told):
    for name, skill in ((arm, 2.5), ("moco", 0.1)):
        run = write_finetuning(
            tmp_path / name, arm=name, fraction=fraction, skill=skill, encoder=name
        )
        if name == "random":
            edit_json(run / "results.json", encoder_run=None)
    runs = [replace(run, kind=FROZEN) for run in find_runs([tmp_path])]
    (task,) = compare(runs, "moco").tasks
    assert (task.pairs[0].difference.verdict == "A higher") == told


@pytest.mark.parametrize("seeds", [[[1]], [{}], [None, "1"], [0, [0]], {"a": 1}])
def test_tuning_seeds_that_are_none_end_no_report(tmp_path, seeds):
    run = write_finetuning(tmp_path / "runs" / "scratch")
    edit_json(run / "results.json", tuning={"lr": 1e-3, "seeds": seeds, "split": "val"})
    (task,) = (comparison := compare(find_runs([tmp_path]))).tasks
    assert len(task.cells) == 1
    assert len(comparison.conflicts) == (0 in seeds)
