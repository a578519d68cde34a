"""What all pictures of the report share: two sets of colours, the frame of a figure, its bytes.

Matplotlib is imported on use, draws without a display, and its settings are left as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from ctssl_jax.report.names import arm_order, known_arms

WIDTH = 6.6
"""Of every figure, in inches."""
LEGEND = 78
"""Letters that fit in a row of a legend; a line and the gaps take the room of seven."""
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


@contextmanager
def new_figure(theme: Theme, height: float) -> Iterator[Any]:
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


def arm_looks(arms: list[str], theme: Theme) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm: known arms always the same, others those left over."""
    names = known_arms()
    known = {arm: arm_order(arm)[0] for arm in arms if arm in names}
    others = [arm for arm in arms if arm not in names]
    places = known | {arm: len(names) + index for index, arm in enumerate(others)}
    return {arm: (theme.series[place % 8], MARKERS[place % 8]) for arm, place in places.items()}


def markers(marker: str, theme: Theme) -> dict[str, Any]:
    """How `plot` draws the means of an arm: above bars, each apart from what it lies on."""
    return {
        "marker": marker,
        "markersize": 7,
        "markeredgecolor": theme.paper,
        "markeredgewidth": 1.1,
        "zorder": 4,
    }


def style(axes: Any, theme: Theme) -> None:
    """Gives axes the look of this report: a base line, and lines across at the ticks."""
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(theme.soft)
    axes.grid(axis="y", color=theme.line, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=5)
    axes.tick_params(axis="x", length=3, color=theme.soft)


def set_title(axes: Any, text: str, size: float = 11) -> None:
    """A bold title above the left corner."""
    axes.set_title(text, loc="left", fontsize=size, fontweight="bold", pad=8)


def short_number(value: float, _: object = None) -> str:
    """1200 as 1.2k, 0.0003 as 3e−4."""
    if 0 < abs(value) < 0.01:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    for scale, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:g}{letter}"
    return f"{value:g}"


def legend(figure: Any, axes: Any, columns: int) -> None:
    """What the lines of `axes` are, above all panels, in as many columns as there is room for."""
    handles, labels = axes.get_legend_handles_labels()
    longest = max(map(len, labels), default=1)
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=max(1, min(columns, LEGEND // (longest + 7))),
        frameon=False,
        handletextpad=0.5,
        columnspacing=1.5,
        borderaxespad=0.3,
    )


def png(figure: Any) -> bytes:
    """The figure as a PNG whose bytes depend on nothing but what is drawn."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
