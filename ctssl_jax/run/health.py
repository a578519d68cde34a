"""What the gauges of `methods/gauges.py` mean, in plain words. Imports no JAX.

The loop reads them aloud while a run goes on, the report afterwards. `Watch` names what is wrong at
the second logged line at which it holds, that is within `2 * log_every` steps.
"""

import dataclasses
from collections.abc import Mapping

CONFIRM = 2  # logged lines in a row that a warning takes
COLLAPSED_STD = 0.1
COLLAPSED_RANK = 1.1
CHANCE_SHARE = 0.98  # a loss above this share of chance has learnt nothing
PATIENCE = 5  # logged lines before chance is a warning: every run starts there
UNUSED_SHARE = 0.05
OLD_QUEUE_EPOCHS = 0.5


def in_words(values: Mapping[str, float]) -> str:
    """The gauges among the metrics, for people; nothing where there are none."""
    words = []
    if "embedding_std" in values:
        words.append(
            f"spread {values['embedding_std']:.2f} of 1, rank {values['effective_rank']:.1f}"
        )
    if "chance" in values:
        below = values["chance"] - values["loss"]
        words.append(f"loss {below:+.2f} below chance, {values['chance']:.2f}")
    if "nothing_predicted" in values:
        nothing = values["nothing_predicted"]
        words.append(
            f"loss {nothing - values['loss']:+.2f} below predicting nothing, {nothing:.2f}"
        )
    if "contrast_accuracy" in values:
        words.append(f"{values['contrast_accuracy']:.0%} find their partner")
    if "prototypes_used" in values:
        words.append(f"{values['prototypes_used']:.0f} of {values['prototypes']:.0f} prototypes")
    if "queue_age_epochs" in values:
        words.append(f"queue {values['queue_age_epochs']:.2f} epochs old")
    return ", ".join(words)


@dataclasses.dataclass
class Watch:
    """Reads the logged metrics of a run and says once what is wrong, and when it is over."""

    _lines: int = 0
    _held: dict[str, int] = dataclasses.field(default_factory=dict)

    def read(self, values: Mapping[str, float]) -> list[str]:
        """The lines to show after this row of metrics."""
        self._lines += 1
        said = []
        for name, (holds, warning, over) in self._findings(values).items():
            before = self._held.get(name, 0)
            self._held[name] = before + 1 if holds else 0
            if self._held[name] == CONFIRM:
                said.append(f"WARNING: {warning}")
            elif before >= CONFIRM and not holds:
                said.append(f"no longer: {over}")
        return said

    def _findings(self, values: Mapping[str, float]) -> dict[str, tuple[bool, str, str]]:
        """Each condition whose metrics are there: whether it holds, and how to say so."""
        found = {}
        std, rank = values.get("embedding_std"), values.get("effective_rank")
        if std is not None:
            found["collapse"] = (
                std < COLLAPSED_STD,
                f"collapse: all embeddings are nearly equal (spread {std:.3f} of 1); stop, lower "
                "config.optim.lr or enlarge the batch",
                "collapse",
            )
        if rank is not None:
            found["rank"] = (
                rank < COLLAPSED_RANK,
                f"collapse: the embeddings lie on a line (effective rank {rank:.1f}); stop, lower "
                "config.optim.lr or enlarge the batch",
                "embeddings on a line",
            )
        if "chance" in values:
            loss, chance = values["loss"], values["chance"]
            found["chance"] = (
                self._lines > PATIENCE and loss > CHANCE_SHARE * chance,
                f"no better than chance: loss {loss:.3f} where guessing gives {chance:.3f}; the "
                "views may share too little, or config.optim.lr does not fit",
                "loss at chance",
            )
        if "prototypes_used" in values:
            used, prototypes = values["prototypes_used"], values["prototypes"]
            found["prototypes"] = (
                used < UNUSED_SHARE * prototypes,
                f"only {used:.0f} of {prototypes:.0f} prototypes are in use; lower "
                "config.method.prototypes, or enlarge the batch or the queue",
                "prototypes unused",
            )
        if "queue_age_epochs" in values:
            age = values["queue_age_epochs"]
            found["queue"] = (
                age > OLD_QUEUE_EPOCHS,
                f"the queue spans {age:.2f} epochs: old keys, and other views of most slices "
                "among the negatives; lower config.method.queue_size",
                "queue too long",
            )
        return found
