"""What step 2 of a preparation leaves: finished parts, one for each unit, read one at a time."""

import hashlib
import hmac
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from ctssl_jax import __version__
from ctssl_jax.dataset.signatures import Signatures, of_records
from data_prep.pipeline import records
from data_prep.pipeline.index import Index
from data_prep.pipeline.quality import TILES, Tile
from data_prep.pipeline.records import pseudonym
from data_prep.pipeline.work import Context, Group, Part, Unit, finished
from data_prep.source import EXCLUDED_BY_CONTENT, Finding, Rejected


def units(context: Context, index: Index) -> Iterator[Unit]:
    """Each unit with the name of its part.

    The name says all that the part depends on, to nobody without the key. Parts sort by unit.
    """
    source = context.source
    shared = [source.name, source.intensity, dict(source.options()), context.canvas, __version__]
    shared.append(sorted(records.features()))
    for name, stamp, items in index.units():
        text = json.dumps([*shared, stamp, [item.plain() for item in items]])
        digest = hmac.new(context.key, text.encode(), hashlib.sha256).hexdigest()
        yield Unit(f"{pseudonym(context.key, name)}-{digest[:32]}", items)


class Parts:
    """The finished parts in the order of their units' pseudonyms, read one at a time."""

    def __init__(self, context: Context, index: Index):
        self._context = context
        # The first item of each, by which what is left out of it is told.
        self._items = {unit.part: unit.items[0].number for unit in units(context, index)}
        self._index = index
        self._names = sorted(self._items)
        self.left_out = frozenset[str]()

    def __iter__(self) -> Iterator[tuple[str, Part]]:
        for name in self._names:
            part = finished(self._context, name)
            assert part is not None, "every unit was read"
            yield name, self._without(name, part)

    @property
    def slices(self) -> int:
        """How many slices they hold."""
        return sum(part.slices for _, part in self)

    def leave_out(self, patients: frozenset[str]) -> None:
        """From now on without the groups of these pseudonyms, which count as left out."""
        self.left_out = patients

    def _without(self, name: str, part: Part) -> Part:
        lost = [group for group in part.groups if group.patient in self.left_out]
        if not lost:
            return part
        kept = [group for group in part.groups if group.patient not in self.left_out]
        count = sum(group.slices for group in lost)
        rejected = Rejected(self._items[name], EXCLUDED_BY_CONTENT, fault=False, count=count)
        return replace(part, groups=kept, rejected=[*part.rejected, rejected])

    def signatures(self) -> Signatures:
        """Of all records, computed anew."""
        intensity = self._context.source.intensity

        def described(name: str, part: Part) -> Signatures:
            path = self._context.parts / f"{name}.array_record"
            stored = (
                record
                for group in part.groups
                for record in records.read(path, group.start, group.stop)
            )
            return of_records(map(records.decode, stored), intensity)

        return Signatures.concatenate(described(*one) for one in self if one[1].slices)

    def places(self) -> Iterator[tuple[str, str]]:
        """Each case by its pseudonym, and the file or folder of its slices."""
        found: dict[str, str] = {}
        for unit in units(self._context, self._index):
            part = finished(self._context, unit.part)
            assert part is not None, "every unit was read"
            cases = {case for group in part.groups for case in group.cases}
            own: dict[str, list[str]] = {case: [] for case in cases}
            for item in unit.items:
                name = f"case {item.case} of {item.patient}"
                own.get(pseudonym(self._context.key, name), []).append(item.path)
            every = [item.path for item in unit.items]
            for case, paths in own.items():
                together = [*(paths or every), *filter(None, [found.get(case)])]
                found[case] = os.path.commonpath(together)
        yield from sorted(found.items())

    def tiles(self, findings: Iterable[Finding]) -> list[Tile]:
        """The middle slices of up to `TILES` series: irregular ones first, then evenly chosen."""
        found: dict[str, list[str]] = defaultdict(list)
        for finding in findings:
            found[finding.series].append(finding.finding)
        groups = [(name, group) for name, part in self for group in part.groups]
        groups.sort(key=lambda row: row[1].series not in found)
        marked = [row for row in groups[: TILES // 2] if row[1].series in found]
        others = groups[len(marked) :]
        room = min(TILES - len(marked), len(others))
        chosen = marked + [others[i * len(others) // room] for i in range(room)]
        return [self._tile(name, group, found[group.series]) for name, group in chosen]

    def _tile(self, name: str, group: Group, found: Sequence[str]) -> Tile:
        middle = (group.start + group.stop) // 2
        path = self._context.parts / f"{name}.array_record"
        (record,) = records.read(path, middle, middle + 1)
        caption = "\n".join(
            [group.series, f"{group.slices} slice{'s' * (group.slices > 1)}", *found[:2]]
        )
        image = records.decode(record)["image"]
        return Tile(image, self._context.source.intensity, caption, bool(found))
