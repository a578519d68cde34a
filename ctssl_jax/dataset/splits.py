"""Names of splits: a sum of several, as TFDS writes it, and the folds of a cross-validation."""

from collections.abc import Iterable

from ctssl_jax.errors import ConfigError

FOLD = "fold"
FEWEST_FOLDS = 3  # one is tested, one validated on, and something is left to train on
LONGEST = 6  # digits in the number of a fold: a report reads names that nobody checked


def parts(split: str) -> tuple[str, ...]:
    """The splits that a split is the sum of.

    >>> parts("train"), parts("fold1+fold2")
    (('train',), ('fold1', 'fold2'))

    Raises:
      ConfigError: one of them has no name, or is there twice.
    """
    names = tuple(split.split("+"))
    if not all(names) or len(set(names)) != len(names):
        raise ConfigError(
            f"split {split!r}: give one split, or different ones joined by +, as in fold1+fold2"
        )
    return names


def fold_names(count: int, flag: str) -> list[str]:
    """`fold0`, `fold1`, ...; `flag` is what asked for so many.

    Raises:
      ConfigError: there are too few of them.
    """
    if count < FEWEST_FOLDS:
        raise ConfigError(
            f"{flag}={count}: must be {FEWEST_FOLDS} or more, or 0 for train, val and test"
        )
    return [f"{FOLD}{number}" for number in range(count)]


def fold_number(split: str) -> int | None:
    """The number of a fold; None where a split is not one."""
    number = split.removeprefix(FOLD)
    if len(number) > LONGEST or not number.isdecimal() or split != f"{FOLD}{int(number)}":
        return None
    return int(number)


def folds_of(splits: Iterable[str]) -> list[str]:
    """Those of the splits that are folds, by their numbers.

    >>> folds_of(["fold10", "train", "fold2", "fold02"])
    ['fold2', 'fold10']
    """
    numbers = {split: fold_number(split) for split in splits}
    return [f"{FOLD}{number}" for number in sorted(n for n in numbers.values() if n is not None)]
