"""Learning curves of every start, as measured and carried on to four times the patients at hand."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ctssl_jax.report.figures.theme import (
    Theme,
    arm_looks,
    legend,
    markers,
    new_figure,
    png,
    set_title,
    style,
)

TICKS = (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000)


class Course(NamedTuple):
    """One start: the measured means at `sizes`; at `n` patients what is foretold, if anything.

    `look` is the arm whose colour it has.
    """

    look: str
    name: str
    sizes: Float[np.ndarray, " k"]
    means: Float[np.ndarray, " k"]
    n: Float[np.ndarray, " m"]
    middle: Float[np.ndarray, " m"]
    low: Float[np.ndarray, " m"]
    high: Float[np.ndarray, " m"]


def foretold(courses: Sequence[Course], patients: int, unit: str, theme: Theme) -> bytes:
    """The curves, with the 95 % interval of one network's AUC; a line where the patients end."""
    with new_figure(theme, height=4.2) as figure:
        axes = figure.subplots()
        style(axes, theme)
        axes.set_xscale("log")
        looks = arm_looks([course.look for course in courses], theme)
        for course in courses:
            _draw(axes, course, *looks[course.look], theme)
        axes.axvline(patients, color=theme.soft, linewidth=1, linestyle=(0, (2, 3)), zorder=1)
        axes.annotate(
            f"{patients:,} at hand",
            (patients, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -10),
            textcoords="offset points",
            fontsize=9,
            color=theme.soft,
        )
        low, high = axes.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.005))
        set_title(axes, "AUC")
        legend(figure, axes, len(courses))
        figure.supxlabel(f"annotated {unit}", fontsize=11, color=theme.soft)
        return png(figure)


def _draw(axes: Any, course: Course, colour: str, marker: str, theme: Theme) -> None:
    if len(course.n):
        axes.fill_between(course.n, course.low, course.high, color=colour, alpha=0.13, linewidth=0)
        axes.plot(course.n, course.middle, color=colour, linewidth=1.8, zorder=3)
    axes.plot(
        course.sizes,
        course.means,
        color=colour,
        linewidth=0,
        **markers(marker, theme),
        label=course.name,
    )
