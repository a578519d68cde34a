"""The pictures of the report, each in a light and a dark form of the same numbers.

Matplotlib is imported on use, draws without a display, and its settings are left as they were.
Every function returns the bytes of a PNG that depend on nothing but the arguments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from jaxtyping import Float

from ctssl_jax.report.compare import NAMES, Cell, Task, arm_name, arm_order
from ctssl_jax.report.runs import Run

WIDTH = 6.6
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Theme:
    """Colours of one form; `series` holds colours that colour-blind readers can tell apart."""

    paper: str
    ink: str
    soft: str
    line: str
    series: tuple[str, ...]


# Series after Okabe and Ito's palette, lightened for the dark form.
LIGHT = Theme(
    paper="#ffffff",
    ink="#1c2128",
    soft="#5c6672",
    line="#e3e7eb",
    series=("#6b7480", "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9", "#332288"),
)
DARK = Theme(
    paper="#14181d",
    ink="#e8ebee",
    soft="#a3adb8",
    line="#2c333b",
    series=("#a9b3be", "#5ab4ee", "#f2894a", "#35c99b", "#dd8cc8", "#e3c04b", "#a5d8f6", "#a79be8"),
)
THEMES = (LIGHT, DARK)


def auc_against_size(task: Task, theme: Theme) -> bytes:
    """Test AUC against the number of training slices: mean, seeds and interval of every arm."""
    arms = task.arms()
    centres = {cell.fraction: float(np.mean(cell.sizes("slices"))) for cell in task.cells}
    sizes = np.array(sorted(set(centres.values())))
    step = _dodge(sizes, len(arms))
    with _axes(theme, height=4.0) as (figure, axes):
        axes.set_xscale("log")
        for index, arm in enumerate(arms):
            look = arms_look(arms)[arm] % len(MARKERS)
            colour, marker = theme.series[look], MARKERS[look]
            shift = np.exp((index - (len(arms) - 1) / 2) * step)
            cells = [cell for cell in task.cells if cell.arm == arm]
            places = [centres[cell.fraction] * shift for cell in cells]
            _draw_arm(axes, cells, places, colour, marker, theme, arm_name(arm))
        if axes.get_ylim()[0] < 0.52:
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
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.005))
        _size_ticks(axes, task, centres)
        axes.set_xlabel("training slices, and their share of the training set", labelpad=8)
        axes.set_title("Test AUC", loc="left", fontsize=11, fontweight="bold", pad=34)
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.02),
            ncols=min(len(arms), 5),
            frameon=False,
            handletextpad=0.5,
            columnspacing=1.5,
            borderaxespad=0,
            borderpad=0,
        )
        return _png(figure)


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
COLUMNS = 3


def pretraining_curves(run: Run, theme: Theme) -> bytes:
    """Loss above, with chance where there is one; schedules, throughput and gauges below.

    A panel is drawn for what was logged and did not stay the same.
    """
    steps, loss = run.series("loss")
    small = {title: run.series(name) for title, name in SMALL_PANELS.items()}
    small = {title: series for title, series in small.items() if len(set(series[1])) > 1}
    rows = -(-len(small) // COLUMNS)
    titles = [*small, *["."] * (rows * COLUMNS - len(small))]
    grid = [titles[row * COLUMNS : (row + 1) * COLUMNS] for row in range(rows)]
    layout = [["loss"] * (COLUMNS if grid else 1), *grid]
    with _figure(theme, height=3.0 + 1.6 * rows) as figure:
        panels = figure.subplot_mosaic(layout, height_ratios=[2.1, *[1] * rows])
        axes = panels["loss"]
        _style(axes, theme)
        colour = theme.series[1]
        axes.plot(steps, loss, color=colour, alpha=0.28, linewidth=0.9)
        axes.plot(steps, smooth(loss), color=colour, linewidth=2)
        title = "Training loss: as logged (pale) and smoothed"
        _, chance = run.series("chance")
        if len(chance):
            axes.axhline(chance[-1], color=theme.soft, linestyle="--", linewidth=1)
            title += "; dashed: chance"
        _title(axes, title)
        axes.set_xlabel("step")
        for title, (at, values) in small.items():
            axes = panels[title]
            _style(axes, theme)
            axes.plot(at, values, color=theme.soft, linewidth=1.5)
            _title(axes, title, size=9.5)
            axes.set_ylim(bottom=0)
            axes.tick_params(labelsize=8.5)
            axes.locator_params(axis="both", nbins=3)
            axes.yaxis.set_major_formatter(_short_number)
        for axes in panels.values():
            axes.xaxis.set_major_formatter(_short_number)
            axes.margins(x=0.02)
        return _png(figure)


def arms_look(arms: list[str]) -> dict[str, int]:
    """Which colour and marker an arm has: known arms always the same, others those left over."""
    known = {arm: arm_order(arm)[0] for arm in arms if arm in NAMES}
    others = [arm for arm in arms if arm not in NAMES]
    return known | {arm: len(NAMES) + index for index, arm in enumerate(others)}


def smooth(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Centred moving average over a fiftieth of the values; shorter at the ends, never shifted."""
    reach = len(values) // 100
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach_here = np.minimum(np.minimum(index, index[::-1]), reach)
    first, last = index - reach_here, index + reach_here + 1
    return (total[last] - total[first]) / (last - first)


def _draw_arm(
    axes: Any,
    cells: list[Cell],
    places: list[float],
    colour: str,
    marker: str,
    theme: Theme,
    name: str,
) -> None:
    from matplotlib.transforms import ScaledTranslation

    means = [cell.spread("auc").mean for cell in cells]
    for cell, place in zip(cells, places, strict=True):
        if np.isfinite(cell.auc_interval.low):
            axes.vlines(
                place,
                cell.auc_interval.low,
                cell.auc_interval.high,
                color=colour,
                alpha=0.3,
                linewidth=6.5,
                zorder=2,
                capstyle="butt",
            )
        dots = cell.test("auc")
        if len(dots) > 1:
            beside = axes.transData + ScaledTranslation(7 / 72, 0, axes.figure.dpi_scale_trans)
            axes.scatter(
                [place] * len(dots),
                dots,
                s=8,
                color=colour,
                linewidths=0,
                transform=beside,
                zorder=5,
            )
    axes.plot(
        places,
        means,
        color=colour,
        linewidth=1.8,
        marker=marker,
        markersize=7,
        markeredgecolor=theme.paper,
        markeredgewidth=1.1,
        zorder=4,
        label=name,
    )


def _dodge(sizes: Float[np.ndarray, " n"], arms: int) -> float:
    """Distance in log slices between arms at one size, so that no bar hides another."""
    if len(sizes) < 2:
        return 0.05
    logs = np.log(sizes)
    return float(min(0.034 * np.ptp(logs), 0.7 * np.diff(logs).min() / arms))


def _size_ticks(axes: Any, task: Task, centres: dict[float, float]) -> None:
    """A tick per size; labels that would touch their right neighbour are left out."""
    low, high = np.log(axes.get_xlim())
    if len(centres) == 1:
        (only,) = centres.values()
        low, high = np.log(only / 2), np.log(only * 2)
    axes.set_xlim(np.exp(low), np.exp(high))
    sizes, labels, last = [], [], np.inf
    for fraction, size in sorted(centres.items(), reverse=True):
        room = (last - np.log(size)) / (high - low) * WIDTH
        sizes.append(size)
        labels.append(f"{size:,.0f}\n{fraction * 100:.3g} %" if room > 0.52 else "")
        last = np.log(size) if labels[-1] else last
    axes.set_xticks(sizes, labels)
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


@contextmanager
def _figure(theme: Theme, height: float) -> Iterator[Any]:
    """A figure in the colours of `theme`; Matplotlib's own settings come back afterwards."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings: Any = {
        "font.size": 11,
        "text.color": theme.ink,
        "axes.labelcolor": theme.soft,
        "xtick.color": theme.soft,
        "ytick.color": theme.soft,
        "axes.edgecolor": theme.line,
        "figure.facecolor": theme.paper,
        "axes.facecolor": theme.paper,
        "savefig.facecolor": theme.paper,
        "axes.unicode_minus": True,
        "text.usetex": False,
        "text.parse_math": False,  # names come from runs: a $ is a $
    }
    with matplotlib.rc_context(settings):
        layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06, hspace=0.08, wspace=0.06)
        figure = Figure(figsize=(WIDTH, height), dpi=200, layout=layout)
        FigureCanvasAgg(figure)
        yield figure


@contextmanager
def _axes(theme: Theme, height: float) -> Iterator[tuple[Any, Any]]:
    with _figure(theme, height) as figure:
        axes = figure.subplots()
        _style(axes, theme)
        yield figure, axes


def _style(axes: Any, theme: Theme) -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.soft)
    axes.grid(axis="y", color=theme.line, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.tick_params(axis="x", length=3, color=theme.soft)


def _title(axes: Any, text: str, size: float = 11) -> None:
    axes.set_title(text, loc="left", fontsize=size, fontweight="bold", pad=8)


def _short_number(value: float, _: object = None) -> str:
    """1200 as 1.2k, 0.0003 as 3e−4."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"


def _png(figure: Any) -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
