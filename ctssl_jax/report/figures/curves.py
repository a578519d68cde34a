"""The curves of the report: scores against training size, and a pre-training run over its steps.

Every function returns a PNG of the given colours that depends on nothing but the arguments.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from ctssl_jax.report.comparison.compare import Cell, Task
from ctssl_jax.report.figures.theme import (
    WIDTH,
    Theme,
    arm_looks,
    legend,
    markers,
    new_figure,
    png,
    set_title,
    short_number,
    style,
)
from ctssl_jax.report.runs import Run
from ctssl_jax.report.words import annotated, legend_name

METRICS = {"auc": "Test AUC", "f1": "Test F1", "accuracy": "Test accuracy"}
COLUMNS = 3
SMALL_PANELS = {
    "Learning rate": "lr",
    "Weight decay": "weight_decay",
    "Images per second": "images_per_second",
    "Embedding spread": "embedding_std",
    "Effective rank": "effective_rank",
    "Partners found": "contrast_accuracy",
    "Prototypes in use": "prototypes_used",
    "Queue age, epochs": "queue_age_epochs",
    "kNN AUC, frozen": "knn_auc",
}


def against_size(task: Task, metrics: tuple[str, ...], theme: Theme) -> bytes:
    """Test scores against the number of training cases: mean, seeds and interval of every arm."""
    with new_figure(theme, height=4.2 if len(metrics) == 1 else 3.6) as figure:
        panels = figure.subplots(ncols=len(metrics), squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            style(axes, theme)
            _draw_metric(axes, task, metric, theme, WIDTH / len(metrics))
        legend(figure, panels[0], len(task.arms()))
        figure.supxlabel(
            f"{annotated(task.word)}, and their share of the training set",
            fontsize=11,
            color=theme.soft,
        )
        return png(figure)


def _draw_metric(axes: Any, task: Task, metric: str, theme: Theme, width: float) -> None:
    arms = task.arms()
    centres = {cell.fraction: float(np.mean(cell.sizes("cases"))) for cell in task.cells}
    step = _dodge(np.array(sorted(set(centres.values()))), len(arms))
    axes.set_xscale("log")
    for index, (arm, (colour, marker)) in enumerate(arm_looks(arms, theme).items()):
        shift = np.exp((index - (len(arms) - 1) / 2) * step)
        cells = [cell for cell in task.cells if cell.arm == arm]
        places = [centres[cell.fraction] * shift for cell in cells]
        _draw_arm(axes, metric, cells, places, colour, marker, theme, legend_name(task, arm))
    _size_ticks(axes, centres, width)  # first: what is drawn needs limits that are apart
    if metric == "auc" and axes.get_ylim()[0] < 0.52:
        _draw_chance(axes, theme)
    axes.set_ylim(top=min(axes.get_ylim()[1], 1.005))
    set_title(axes, METRICS[metric])


def _draw_chance(axes: Any, theme: Theme) -> None:
    axes.axhline(0.5, color=theme.soft, linewidth=0.9, linestyle=(0, (2, 3)), zorder=1)
    axes.annotate(
        "chance",
        (1, 0.5),
        xycoords=("axes fraction", "data"),
        fontsize=9,
        color=theme.soft,
        ha="right",
        va="bottom",
        xytext=(0, 2),
        textcoords="offset points",
    )


def _draw_arm(
    axes: Any,
    metric: str,
    cells: list[Cell],
    places: list[float],
    colour: str,
    marker: str,
    theme: Theme,
    name: str,
) -> None:
    from matplotlib.transforms import ScaledTranslation

    means = [cell.mean(metric) for cell in cells]
    beside = axes.transData + ScaledTranslation(7 / 72, 0, axes.figure.dpi_scale_trans)
    for cell, place in zip(cells, places, strict=True):
        interval = cell.interval(metric)
        if np.isfinite(interval.low):
            bar = {"color": colour, "alpha": 0.3, "linewidth": 6.5, "capstyle": "butt"}
            axes.vlines(place, interval.low, interval.high, zorder=2, **bar)
        dots = cell.test(metric)
        if len(dots) > 1:
            look = {"s": 8, "color": colour, "linewidths": 0, "transform": beside}
            axes.scatter([place] * len(dots), dots, zorder=5, **look)
    axes.plot(
        places,
        means,
        color=colour,
        linewidth=1.8,
        **markers(marker, theme),
        label=name,
    )


def _dodge(sizes: Float[np.ndarray, " n"], arms: int) -> float:
    """Distance in log cases between arms at one size, so that no bar hides another."""
    if len(sizes) < 2:
        return 0.05
    logs = np.log(sizes)
    return float(min(0.034 * np.ptp(logs), 0.7 * np.diff(logs).min() / arms))


def _size_ticks(axes: Any, centres: dict[float, float], width: float) -> None:
    """A tick per size; labels that would touch their right neighbour are left out."""
    low, high = np.log(axes.get_xlim())
    if len(centres) == 1:
        (only,) = centres.values()
        low, high = np.log(only / 2), np.log(only * 2)
    axes.set_xlim(np.exp(low), np.exp(high))
    sizes, labels, last = [], [], np.inf
    for fraction, size in sorted(centres.items(), reverse=True):
        room = (last - np.log(size)) / (high - low) * width
        sizes.append(size)
        labels.append(f"{size:,.0f}\n{fraction * 100:.3g} %" if room > 0.52 else "")
        last = np.log(size) if labels[-1] else last
    axes.set_xticks(sizes, labels)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def pretraining_curves(run: Run, theme: Theme) -> bytes:
    """Loss above, with that of knowing nothing; schedules, throughput and gauges below.

    A panel is drawn for what was logged and did not stay the same.
    """
    steps, loss = run.series("loss")
    small = {title: run.series(name) for title, name in SMALL_PANELS.items()}
    small = {title: series for title, series in small.items() if len(set(series[1])) > 1}
    rows = -(-len(small) // COLUMNS)
    titles = [*small, *["."] * (rows * COLUMNS - len(small))]
    grid = [titles[row * COLUMNS : (row + 1) * COLUMNS] for row in range(rows)]
    layout = [["loss"] * (COLUMNS if grid else 1), *grid]
    with new_figure(theme, height=3.0 + 1.6 * rows) as figure:
        panels = figure.subplot_mosaic(layout, height_ratios=[2.1, *[1] * rows])
        axes = panels["loss"]
        style(axes, theme)
        colour = theme.series[1]
        axes.plot(steps, loss, color=colour, alpha=0.28, linewidth=0.9)
        axes.plot(steps, smooth(loss), color=colour, linewidth=2)
        title = "Training loss: as logged (pale) and smoothed"
        for gauge in ("chance", "nothing_predicted"):  # a method has one of them
            _, known = run.series(gauge)
            if len(known):
                axes.axhline(known[-1], color=theme.soft, linestyle="--", linewidth=1)
                title += f"; dashed: {gauge.replace('_', ' ')}"
        set_title(axes, title)
        axes.set_xlabel("step")
        for title, (at, values) in small.items():
            axes = panels[title]
            style(axes, theme)
            axes.plot(at, values, color=theme.soft, linewidth=1.5)
            set_title(axes, title, size=9.5)
            axes.set_ylim(bottom=0)
            axes.tick_params(labelsize=8.5)
            axes.locator_params(axis="both", nbins=3)
            axes.yaxis.set_major_formatter(short_number)
        for axes in panels.values():
            axes.xaxis.set_major_formatter(short_number)
            axes.margins(x=0.02)
        return png(figure)


def smooth(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Centred moving average over a fiftieth of the values; shorter at the ends, never shifted."""
    reach = len(values) // 100
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach_here = np.minimum(np.minimum(index, index[::-1]), reach)
    first, last = index - reach_here, index + reach_here + 1
    return (total[last] - total[first]) / (last - first)
