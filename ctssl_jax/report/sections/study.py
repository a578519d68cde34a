"""The pictures of a task: scores against training size, ROC curves, confusion matrices."""

from dataclasses import dataclass
from functools import partial

from ctssl_jax.report.comparison.compare import Task
from ctssl_jax.report.comparison.examples import Example, examples
from ctssl_jax.report.figures import curves as figures
from ctssl_jax.report.figures import outcomes as outcome_figures
from ctssl_jax.report.figures import tables
from ctssl_jax.report.figures.picture import Numbers, Picture, drawn
from ctssl_jax.report.sections.annotations import Annotations, of_task
from ctssl_jax.report.words import annotated, legend_name, number, sizes


@dataclass(frozen=True)
class TaskPictures:
    """What is shown of one task; `confusions` are one for each training size, in words."""

    auc: Picture
    others: Picture
    roc: Picture
    confusions: list[tuple[str, Picture]]
    calibration: Picture | None
    differences: Numbers
    decisions: Numbers
    examples: list[Example]
    of_examples: Numbers
    annotations: Annotations | None

    def files(self) -> list[Picture | Numbers]:
        """All that has files beside the page."""
        confusions = (picture for _, picture in self.confusions)
        calibration = [self.calibration] if self.calibration else []
        numbers = [self.differences, self.decisions]
        numbers += [self.of_examples] if self.examples else []
        more = [self.annotations.picture] if self.annotations else []
        return [self.auc, self.others, self.roc, *calibration, *confusions, *more, *numbers]


def task_pictures(task: Task, title: str, number: int) -> TaskPictures:
    """Draws a task; `number` tells the files of one task from those of another."""
    found = examples(task)
    return TaskPictures(
        auc=_against_size(task, title, ("auc",), f"auc-{number}"),
        others=_against_size(task, title, ("f1", "accuracy"), f"f1-accuracy-{number}"),
        roc=drawn(
            f"roc-{number}",
            f"{title}: ROC curves of every start, one panel for each number of "
            f"{annotated(task.word)}. Their areas are the AUC of the table.",
            partial(outcome_figures.roc_of_sizes, task),
            tables.roc(task),
        ),
        confusions=_confusions(task, title, f"confusion-{number}"),
        calibration=_calibration(task, title, f"calibration-{number}"),
        differences=Numbers(f"differences-{number}", tables.differences(task)),
        decisions=Numbers(f"decisions-{number}", tables.decisions(task)),
        examples=found,
        of_examples=Numbers(f"examples-{number}", tables.examples(found)),
        annotations=of_task(task, title, number),
    )


def _against_size(task: Task, title: str, metrics: tuple[str, ...], name: str) -> Picture:
    """Scores against training size, told in words for those who do not see it."""
    told = [
        f"{figures.METRICS[metric]} of {legend_name(task, arm)}: "
        + ", ".join(
            f"{number(cell.mean(metric))} at {sizes(cell.sizes('cases'))}"
            for cell in task.cells
            if cell.arm == arm
        )
        for metric in metrics
        for arm in task.arms()
    ]
    return drawn(
        name,
        f"{title}: means by number of {annotated(task.word)}. {'; '.join(told)}.",
        partial(figures.against_size, task, metrics),
        tables.against_size(task, metrics),
    )


def _calibration(task: Task, title: str, name: str) -> Picture | None:
    """Of two classes; of more there is no one curve."""
    if len(task.classes) != 2:
        return None
    return drawn(
        name,
        f"{title}: calibration of every start, one panel for each number of "
        f"{annotated(task.word)}: the observed share of {task.classes[1]} against its "
        "predicted chance.",
        partial(outcome_figures.calibration_of_sizes, task),
        tables.calibration(task),
    )


def _confusions(task: Task, title: str, name: str) -> list[tuple[str, Picture]]:
    found = []
    fractions = sorted({cell.fraction for cell in task.cells})
    for place, fraction in enumerate(fractions, start=1):
        cells = [cell for cell in task.cells if cell.fraction == fraction]
        size = f"{sizes(cells[0].sizes('cases'))} {annotated(task.word)}"
        picture = drawn(
            f"{name}-{place}",
            f"{title}: confusion matrices of every start with {size}: the share "
            "of each true class that is given to each class.",
            partial(outcome_figures.confusion_of_size, cells, task.classes),
            tables.confusions(cells, task.classes),
        )
        found.append((size, picture))
    return found
