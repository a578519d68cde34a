"""From what a compiler says of one chip's program to the time of a step: an estimate."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from launch.compile_check import hlo as compiled

GIB = 2**30
HOP_SECONDS = 1e-6  # assumed for a chip to its neighbour, whatever the size
REPEATED = 1.2  # times its share of the FLOPs, from which on a chip does others' work too


class Chip(NamedTuple):
    """A TPU generation, per chip.

    Source: cloud.google.com/tpu/docs/v5e, v6e, v5p for peak and interconnect (its "bidirectional"
    figure halved). The clock is what the peak is over two FLOPs for each cell of the matrix units:
    4 of 128 x 128 (v5e), 8 (v5p), 4 of 256 x 256 (v6e). HBM is what libtpu 0.0.42 leaves a program.
    """

    flops: float  # bf16, per second
    hbm: float  # GiB
    ici: float  # bytes per second that all links of a chip send
    clock: float  # Hz
    smallest: str  # the smallest slice that the compiler knows


CHIPS = {
    "v5e": Chip(197e12, 15.75, 200e9, 1.50e9, "2x2"),
    "v6e": Chip(918e12, 31.25, 400e9, 1.75e9, "2x2"),
    "v5p": Chip(459e12, 95.74, 600e9, 1.75e9, "2x2x1"),
}


class Slice(NamedTuple):
    """Some chips of a slice: its name such as `v5e:4x4`, and how many."""

    topology: str
    chips: int

    @property
    def chip(self) -> Chip:
        """What is known of the generation."""
        return CHIPS[self.topology.partition(":")[0]]

    @property
    def sides(self) -> tuple[int, ...]:
        """Chips along each axis of the whole slice."""
        return tuple(map(int, self.topology.partition(":")[2].split("x")))


class Cost(NamedTuple):
    """What the compiler says of one chip's program, and the whole program's FLOPs as written.

    Attributes:
      written_flops: of all chips together, in the form that is for a TPU.
      plain_flops: the same without the zeros that this form multiplies (`nn.packing`).
    """

    arguments: int  # bytes, as the next four
    outputs: int
    aliased: int
    temporaries: int
    code: int
    flops: float
    bytes_accessed: float
    work: compiled.Work
    written_flops: float
    plain_flops: float
    seconds: float  # that compiling took

    @property
    def needed(self) -> float:
        """GiB of HBM. Outputs that reuse an argument's memory count once."""
        parts = self.arguments + self.outputs - self.aliased + self.temporaries + self.code
        return parts / GIB


class Estimate(NamedTuple):
    """Seconds of a step, its parts, and what follows."""

    compute: float
    transfer: float
    latency: float
    step: float
    images_per_second: float
    mfu: float


def hops(sides: Sequence[int], taking_part: int) -> int:
    """Neighbours that a sum passes there and back, on a torus; fewer where few take part."""
    return min(2 * sum(side // 2 for side in sides), 2 * (taking_part - 1))


def estimate(where: Slice, cost: Cost, batch_size: int) -> Estimate:
    """A step's time, if nothing overlaps and the compiler's cycles are true."""
    chip, chips = where.chip, where.chips
    compute = cost.work.cycles / chip.clock
    transfer = latency = 0.0
    for one in cost.work.collectives:
        transfer += one.times * one.sent(chips) / chip.ici
        latency += one.times * HOP_SECONDS * hops(where.sides, one.devices or chips)
    step = compute + transfer + latency
    mfu = cost.plain_flops / (chips * chip.flops * step)
    return Estimate(compute, transfer, latency, step, batch_size / step, mfu)


def summary(where: Slice, cost: Cost, batch_size: int) -> dict[str, Any]:
    """The figures of one chip and the estimate, as plain data."""
    return {
        **where._asdict(),
        "images_per_chip": batch_size / where.chips,
        "hbm_gib": {"needed": cost.needed, "available": where.chip.hbm},
        "memory_bytes": {
            name: getattr(cost, name)
            for name in ("arguments", "outputs", "aliased", "temporaries", "code")
        },
        "flops": cost.flops,
        "flops_written": cost.written_flops,
        "flops_plain": cost.plain_flops,
        "times_its_share": cost.flops * where.chips / cost.written_flops,
        "bytes_accessed": cost.bytes_accessed,
        "collectives": {
            kind: total._asdict() for kind, total in cost.work.by_kind(where.chips).items()
        },
        "estimated_cycles": cost.work.cycles,
        "unknown_loops": cost.work.unknown_loops,
        "estimate": estimate(where, cost, batch_size)._asdict(),
        "assumed": {**where.chip._asdict(), "hop_seconds": HOP_SECONDS},
        "compile_seconds": cost.seconds,
    }


def table(found: dict[str, Any]) -> str:
    """The summary for the eye."""
    memory, guess, assumed = found["memory_bytes"], found["estimate"], found["assumed"]
    parts = ", ".join(f"{name} {size / GIB:.2f}" for name, size in memory.items())
    rows = [
        ("HBM", f"{found['hbm_gib']['needed']:.2f} of {assumed['hbm']:.2f} GiB ({parts})"),
        (
            "FLOPs",
            f"{found['flops']:.3g}, {found['times_its_share']:.2f} times a chip's share of the "
            "program as written",
        ),
        ("bytes accessed", f"{found['bytes_accessed']:.3g}, by the program's instructions"),
        *(
            (kind, f"{total['runs']:,} a step, {total['bytes'] / 1e6:,.2f} MB")
            for kind, total in found["collectives"].items()
        ),
        ("cycles", f"{found['estimated_cycles']:,}, the compiler's estimate without collectives"),
    ]
    lines = ["one chip, one step"] + [f"  {name:16}{words}" for name, words in rows]
    if found["times_its_share"] > REPEATED:
        lines.append("  chips repeat one another's work: the batch does not stay split")
    if found["unknown_loops"]:
        lines.append(f"  {found['unknown_loops']} loops of unknown length are counted once")
    lines += [
        "estimated, not measured",
        f"  step            {1e3 * guess['step']:.1f} ms: compute {1e3 * guess['compute']:.1f}, "
        f"bytes between chips {1e3 * guess['transfer']:.2f}, their latency "
        f"{1e3 * guess['latency']:.2f}",
        f"  images/s        {guess['images_per_second']:,.0f}, "
        f"{guess['images_per_second'] / found['chips']:,.1f} a chip",
        f"  MFU             {guess['mfu']:.1%}",
        f"  assumed         clock {assumed['clock'] / 1e9:.2f} GHz, peak "
        f"{assumed['flops'] / 1e12:.0f} TFLOP/s bf16, {assumed['ici'] / 1e9:.0f} GB/s out of a "
        f"chip, {1e6 * assumed['hop_seconds']:.0f} us a hop, ring algorithms on a torus, nothing "
        "overlaps, input never waited for",
    ]
    return "\n".join(lines)
