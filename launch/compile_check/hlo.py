"""What a compiled TPU program says of itself: collectives and the compiler's own cycle counts.

Read from the text of the optimised HLO (`Compiled.as_text()`). A computation inside a `while`
counts as often as it runs, where the program says how often; of the branches of a `conditional` the
one with the most cycles counts. An asynchronous collective is spread over several instructions,
which share one channel: it counts once.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}  # the others end in their number of bits

COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)")
OPCODE = re.compile(r" (?P<opcode>[a-z][a-z0-9\-]*)\(")
ARRAY = re.compile(r"\b(?P<dtype>pred|bf16|[sufc]\d+|f8\w+)\[(?P<shape>[\d,]*)\]")
CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """One collective of a device's program.

    Attributes:
      kind: one of `KINDS`.
      bytes: of its result on one device; for a reduce-scatter of its operand.
      devices: that take part together; 0 where the program does not say: all.
      times: it runs in a step.
      channel: its number in the program; empty where it has none.
    """

    kind: str
    bytes: int
    devices: int
    times: int
    channel: str

    def sent(self, all_devices: int) -> float:
        """Bytes that a device sends each time, by the ring algorithm (Patarasuk and Yuan 2009)."""
        n = self.devices or all_devices
        if self.kind == "all-reduce":
            return 2 * self.bytes * (n - 1) / n
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (n - 1) / n


class Total(NamedTuple):
    """Collectives of one kind: how many run in a step, the bytes of all, the bytes they send."""

    runs: int
    bytes: int
    sent: float


@dataclasses.dataclass(frozen=True)
class Work:
    """What one device does in a step.

    Attributes:
      cycles: the compiler's estimate, summed; collectives are not in it.
      collectives: one for each channel.
      unknown_loops: loops of unknown length, counted as if they ran once.
    """

    cycles: int = 0
    collectives: tuple[Collective, ...] = ()
    unknown_loops: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(
            self.cycles + other.cycles,
            self.collectives + other.collectives,
            self.unknown_loops + other.unknown_loops,
        )

    def repeated(self, times: int) -> "Work":
        """The same so many times."""
        collectives = tuple(one._replace(times=one.times * times) for one in self.collectives)
        return Work(self.cycles * times, collectives, self.unknown_loops)

    def by_kind(self, devices: int) -> dict[str, Total]:
        """Totals of the kinds that occur, over a mesh of `devices`."""
        totals: dict[str, Total] = {}
        for one in self.collectives:
            runs, total, sent = totals.get(one.kind, Total(0, 0, 0.0))
            totals[one.kind] = Total(
                runs + one.times,
                total + one.times * one.bytes,
                sent + one.times * one.sent(devices),
            )
        return totals


def read(text: str) -> Work:
    """The work of a step, from the text of its compiled program.

    Raises:
      ValueError: the text is no HLO module with an entry.
    """
    entry, computations = _parts(text)

    @functools.cache
    def work(name: str, fused: bool) -> Work:
        total = Work()
        for line in computations.get(name, ()):
            total += _instruction(line, fused, work, computations)
        return total

    found = work(entry, False)
    return dataclasses.replace(found, collectives=tuple(_once_per_channel(found.collectives)))


def _parts(text: str) -> tuple[str, dict[str, list[str]]]:
    """The entry's name, and the lines of each computation."""
    entry, current, computations = "", "", dict[str, list[str]]()
    for line in text.splitlines():
        if line[:1] not in ("", " ", "}") and (header := COMPUTATION.match(line)):
            current = header["name"]
            computations[current] = []
            entry = current if header["entry"] else entry
        elif current and line.startswith(" "):
            computations[current].append(line)
    if not entry:
        raise ValueError("no HLO module with an entry")
    return entry, computations


def _instruction(
    line: str, fused: bool, work: "functools._lru_cache_wrapper[Work]", computations: Mapping
) -> Work:
    """The work of one instruction and of what it calls; cycles of a fusion are those it states."""
    instruction = INSTRUCTION.match(line)
    opcode = instruction and OPCODE.search(" " + instruction["rest"])
    if not instruction or not opcode:
        return Work()
    rest = " " + instruction["rest"]
    kind, attributes = opcode["opcode"], rest[opcode.end() :]
    stated = CYCLES.search(attributes)
    own = Work(0 if fused or not stated else int(stated[1]))
    base = kind.removesuffix("-start")
    if base in KINDS:
        return own + Work(collectives=(_collective(base, kind, rest, opcode, attributes),))
    if kind == "while":
        trips = _trips(attributes, computations)
        body = work(_called("body", attributes), fused).repeated(trips or 1)
        return own + body + Work(unknown_loops=0 if trips else 1)
    if kind == "conditional":
        branches = BRANCHES.search(attributes)
        names = branches[1].split(", ") if branches else []
        names = [name.lstrip("%") for name in names] or [
            _called(f"{value}_computation", attributes) for value in ("true", "false")
        ]
        return own + max((work(name, fused) for name in names), key=lambda found: found.cycles)
    if kind in ("fusion", "call", "async-start"):
        called = _called("calls", attributes) or _called("to_apply", attributes)
        return own + work(called, fused or kind == "fusion")
    return own


def _called(role: str, attributes: str) -> str:
    found = re.search(rf"\b{role}=%?([\w.\-]+)", attributes)
    return found[1] if found else ""


def _trips(attributes: str, computations: Mapping[str, list[str]]) -> int:
    """How often a loop runs: as stated, or from a condition `counter < constant`; 0: unknown.

    A counter starts at 0 and goes up by 1 in what JAX writes.
    """
    if stated := TRIPS.search(attributes):
        return int(stated[1])
    condition = "\n".join(computations.get(_called("condition", attributes), ()))
    test = re.search(
        r"ROOT %?[\w.\-]+ = pred\S* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", condition
    )
    limit = test and re.search(rf"%?{re.escape(test[1])} = [su]32\S* constant\((\d+)\)", condition)
    return int(limit[1]) if limit else 0


def _collective(
    base: str, kind: str, rest: str, opcode: re.Match[str], attributes: str
) -> Collective:
    result = rest[: opcode.start()]
    if kind.endswith("-start") and base in ("all-gather", "collective-permute"):
        # (operand, result, contexts): the larger of the first two is what there is in the end
        size = max(map(_bytes, ARRAY.finditer(result)), default=0)
    else:
        size = sum(map(_bytes, ARRAY.finditer(result)))
    devices = _group(attributes)
    if base == "reduce-scatter":
        size *= devices or 1
    channel = re.search(r"channel_id=(\d+)", attributes)
    return Collective(base, size, devices, 1, channel[1] if channel else "")


def _bytes(array: re.Match[str]) -> int:
    dtype, shape = array["dtype"], array["shape"]
    bits = BITS.get(dtype) or (8 if dtype.startswith("f8") else int(dtype[1:]))
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _group(attributes: str) -> int:
    """Devices of a replica group, in the three ways that HLO writes it."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"('\w+')=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'\w+'", mesh[2]))
    if tiled := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(tiled[1])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed[1].count(",") + 1
    return 0


def _once_per_channel(collectives: Iterable[Collective]) -> Iterable[Collective]:
    kept: dict[object, Collective] = {}
    for number, one in enumerate(collectives):
        kept.setdefault(one.channel or number, one)
    return kept.values()
