"""What is shown of frozen features: slices beside those that an encoder takes for most alike."""

from dataclasses import dataclass

from ctssl_jax.report.figures.picture import Picture
from ctssl_jax.report.names import RANDOM, arm_name
from ctssl_jax.report.runs import Run, neighbours
from ctssl_jax.report.sections.data_card import text


@dataclass(frozen=True)
class Neighbours:
    """Slices and their nearest by one encoder, and the classes of each row, the query's first."""

    encoder: str
    task: str
    picture: Picture
    rows: list[tuple[str, list[str]]]


def neighbours_section(run: Run, name: str) -> Neighbours | None:
    """What an evaluation drew of neighbours; None where it drew none."""
    found = neighbours(run)
    if not found:
        return None
    content, labels = found
    classes = run.data.get("classes")
    names = [text(each)[:40] or "?" for each in classes] if isinstance(classes, list) else []
    rows = [[names[label] if 0 <= label < len(names) else "?" for label in row] for row in labels]
    said = "; ".join(f"{row[0]}: {', '.join(row[1:])}" for row in rows)
    alt = f"Validation slices, each with its nearest training slices. Classes by row: {said}."
    return Neighbours(
        encoder_name(run),
        str(run.config.get("task") or "")[:80],
        Picture(name, alt, content),
        [(row[0], row[1:]) for row in rows],
    )


def encoder_name(run: Run) -> str:
    """What an evaluation took the features of."""
    arm = str(run.config.get("arm") or "")
    return "Random encoder" if arm == RANDOM else arm_name(arm) or "Encoder"
