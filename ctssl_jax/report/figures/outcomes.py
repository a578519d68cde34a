"""Pictures of `outcomes`: ROC curves, calibration, and confusion matrices.

Every function returns a PNG of the given colours that depends on nothing but the arguments.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.comparison.outcomes import (
    FALSE_POSITIVES,
    calibration_curve,
    mean_confusion,
    mean_roc_curve,
    roc_curves,
)
from ctssl_jax.report.figures.theme import (
    Theme,
    arm_looks,
    legend,
    new_figure,
    png,
    set_title,
    style,
)
from ctssl_jax.report.names import arm_name
from ctssl_jax.report.words import legend_name, percent, trained_on

Looks = dict[str, tuple[str, str]]
"""Colour and marker of each arm."""

PRINTED = 4
"""With more classes than these a matrix is colours alone; its numbers are in the CSV."""


def roc_of_sizes(task: Task, theme: Theme) -> bytes:
    """One panel for each training size: the mean ROC curve of each arm, pale its single seeds."""

    def draw(axes: Any, cells: list[Cell], looks: Looks) -> None:
        for cell in cells:
            colour, _ = looks[cell.arm]
            curves = roc_curves(cell)
            if len(curves) > 1:
                axes.plot(FALSE_POSITIVES, curves.T, color=colour, alpha=0.3, linewidth=0.7)
            mean, name = mean_roc_curve(cell), legend_name(task, cell.arm)
            axes.plot(FALSE_POSITIVES, mean, color=colour, linewidth=1.8, label=name)

    return _squares_of_sizes(task, theme, draw, "false positive rate", "true positive rate")


def calibration_of_sizes(task: Task, theme: Theme) -> bytes:
    """One panel for each training size: the observed share against the predicted chance."""

    def draw(axes: Any, cells: list[Cell], looks: Looks) -> None:
        for place, cell in enumerate(cells):
            colour, marker = looks[cell.arm]
            curve = calibration_curve(cell)
            # Beside each other, so that no bar hides another.
            at = [each.predicted + 0.012 * (place - (len(cells) - 1) / 2) for each in curve]
            low, high = ([getattr(each, end) for each in curve] for end in ("low", "high"))
            axes.vlines(at, low, high, color=colour, alpha=0.35, linewidth=2.5)
            name, shares = legend_name(task, cell.arm), [each.observed for each in curve]
            look = {"color": colour, "marker": marker, "markersize": 4.5, "linewidth": 1.4}
            axes.plot(at, shares, label=name, **look)

    return _squares_of_sizes(task, theme, draw, "predicted chance", "observed share")


def _squares_of_sizes(
    task: Task,
    theme: Theme,
    draw: Callable[[Any, list[Cell], Looks], None],
    across: str,
    up: str,
) -> bytes:
    """Unit squares with their diagonal, one for each training size, `draw` in each."""
    fractions = sorted({cell.fraction for cell in task.cells})
    looks, columns = arm_looks(task.arms(), theme), _columns(len(fractions))
    rows = -(-len(fractions) // columns)
    with new_figure(theme, height=1.0 + rows * min(5.8 / columns, 3.4)) as figure:
        panels = _panels(figure, len(fractions), columns)
        for axes, fraction in zip(panels, fractions, strict=True):
            cells = [cell for cell in task.cells if cell.fraction == fraction]
            style(axes, theme)
            axes.plot([0, 1], [0, 1], color=theme.soft, linewidth=0.9, linestyle=(0, (2, 3)))
            draw(axes, cells, looks)
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axes.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            set_title(axes, trained_on(cells[0]), size=9.5)
            axes.tick_params(labelsize=8.5)
        figure.supxlabel(across, fontsize=9.5, color=theme.soft)
        figure.supylabel(up, fontsize=9.5, color=theme.soft)
        fullest = max(panels, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
        legend(figure, fullest, len(looks))
        return png(figure)


def confusion_of_size(cells: list[Cell], classes: tuple[str, ...], theme: Theme) -> bytes:
    """One matrix for each arm at one training size: the share of each true class, over all runs."""
    names = [name if len(name) <= 12 else f"{name[:11]}…" for name in classes]
    columns = _columns(len(cells))
    height = 0.5 + 5.4 / max(columns, 3) + (0.5 if len(names) > 2 else 0)
    with new_figure(theme, height=0.3 + height * -(-len(cells) // columns)) as figure:
        panels = _panels(figure, len(cells), columns)
        for place, (axes, cell) in enumerate(zip(panels, cells, strict=True)):
            _draw_matrix(axes, cell, theme)
            axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > 2 else 0)
            axes.set_yticks(range(len(names)), names if place % columns == 0 else [])
            axes.tick_params(length=0, labelsize=7)
            set_title(axes, arm_name(cell.arm), size=9.5)
        figure.supxlabel("predicted class", fontsize=9.5, color=theme.soft)
        figure.supylabel("true class", fontsize=9.5, color=theme.soft)
        return png(figure)


def _draw_matrix(axes: Any, cell: Cell, theme: Theme) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    counts = mean_confusion(cell)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = LinearSegmentedColormap.from_list("share", [theme.paper, theme.series[1]])
    printed = len(counts) <= PRINTED
    # Pale where there is text on it, which then stays readable.
    axes.imshow(shares, cmap=colours, vmin=0, vmax=1, alpha=0.6 if printed else 1.0)
    axes.spines[:].set_color(theme.line)
    if printed:
        for row, column in np.ndindex(*counts.shape):
            share = shares[row, column]
            text = f"{percent(round(share, 2))}\n{counts[row, column]:.3g}"
            axes.text(column, row, text, ha="center", va="center", fontsize=8.5)


def _columns(panels: int) -> int:
    return panels if panels <= 4 else 3


def _panels(figure: Any, count: int, columns: int) -> list[Any]:
    """As many panels as asked for, in rows; what is left of the last row stays empty."""
    grid = figure.subplots(-(-count // columns), columns, squeeze=False)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    return list(grid.flat[:count])
