"""Step 1 of a preparation: where each item belongs, from its header."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import islice

from data_prep.pipeline.index import Index
from data_prep.pipeline.progress import Progress
from data_prep.pipeline.runners import GaveUp, Runner
from data_prep.pipeline.work import Context
from data_prep.source import EXCLUDED, Item, Place, Rejected, Source, Unusable

SCAN_AT_ONCE = 64  # items of one task


def scan(context: Context, runner: Runner, index: Index, excluded: Container[str] = ()) -> None:
    """Places all items. A task is many of them; if it is given up, each of its items is one.

    Items of the `excluded` patients, as in the source, are left out.
    """
    progress = Progress("files looked at")
    again: list[tuple[Item, ...]] = []
    for tasks in (_chunks(context.source.items(), SCAN_AT_ONCE), again):
        for items, placed in runner.run(_place, context, tasks):
            if isinstance(placed, GaveUp) and len(items) > 1:
                again += [(item,) for item in items]
                continue
            progress.step(len(items))
            if isinstance(placed, GaveUp):
                index.reject(items[0], placed.reason, True)
                continue
            for item, place in zip(items, placed, strict=True):
                if isinstance(place, Unusable):
                    rejected = Rejected.of(item.number, place).of_item(item)
                    index.reject(item, rejected.reason, rejected.fault)
                    continue
                where, stamp = place
                if where.patient in excluded:
                    index.leave_out(item, where, EXCLUDED)
                else:
                    index.add(item, where, stamp)
    index.complete()


def _place(context: Context, items: Sequence[Item]) -> list[tuple[Place, str] | Unusable]:
    """Place and stamp of each item, or why it has none."""
    placed = place_all(context.source, items)
    return [
        place if isinstance(place, Unusable) else (place, item.stamp())
        for item, place in zip(items, placed, strict=True)
    ]


def _chunks(items: Iterable[Item], size: int) -> Iterator[tuple[Item, ...]]:
    remaining = iter(items)
    while chunk := tuple(islice(remaining, size)):
        yield chunk


def place_all(source: Source, items: Sequence[Item]) -> list[Place | Unusable]:
    """Where each item belongs, or why it is not to be read."""
    placed: list[Place | Unusable] = []
    for item in items:
        try:
            item.require_sound()
            place = source.place(item)
            if not place.patient:
                raise Unusable("no patient")
            placed.append(place)
        except Unusable as error:
            placed.append(error)
        except Exception as error:  # a damaged header may raise anything
            placed.append(Unusable(f"the reader failed ({type(error).__name__})"))
    return placed
