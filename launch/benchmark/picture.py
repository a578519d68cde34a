"""Pictures of what was measured; matplotlib comes with the `report` extra."""

from pathlib import Path
from typing import Any

from ctssl_jax.errors import ConfigError
from launch.benchmark.compare import OURS
from launch.benchmark.parts import STEP

COLOURS = {"ours": "#1b6ca8", "others": "#b0b7bf"}


def draw(record: dict[str, Any], path: Path) -> None:
    """One bar for each row: images per second of `compare`, ms of the other parts.

    Raises:
      ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("--out: matplotlib is missing; pip install 'ctssl_jax[report]'") from None

    rows, compared = record["rows"], record["part"] == "compare"
    names = list(rows)
    values = [row["ms"] if compared else row["ms_per_batch"] for row in rows.values()]
    figure = Figure(figsize=(8, 0.7 + 0.5 * len(rows)), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    own = OURS if compared else STEP
    colours = [COLOURS["ours" if name == own else "others"] for name in names]
    bars = axes.barh(names, values, color=colours)
    labels = [f"{value:,.0f} ms" for value in values]
    if compared:
        ratios = [f"; ours to it {row['ratio']:.2f}" * (name != own) for name, row in rows.items()]
        labels = list(map(str.__add__, labels, ratios))
    axes.bar_label(bars, labels, padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.5 * max(values))
    axes.set_xlabel("ms a step, less is better")
    axes.set_title(record["title"], loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
