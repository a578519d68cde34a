"""The study: every initialisation at every training-set size, with several seeds.

    python -m launch.sweep --config=configs/ablation.py:covid_ct \
        --config.encoders=runs/spark --config.encoders=runs/moco --workdir=runs/covid_ct

Each cell of the grid is a run folder in the workdir, made as the ordinary command makes it.
Repeating the command goes on: what is done is kept, what is begun goes on, what broke is tried
again. `--config.base.FIELD=VALUE` changes the task's config. Several sweeps may share a workdir.

    --dry_run           print the cells as ordinary commands, with what they will take; run nothing
    --price_per_hour=P  of the machine: --dry_run says the cost, too
    --parallel=N        so many cells at a time, each a process with its share of the CPUs
    --gpus=0,1,...      for --parallel: parted over the processes
    --cell=I            the I-th cell alone, from 0: for a task of a Slurm array

With `--config.lrs` and `--config.tuning_seeds` runs that choose the learning rate on validation
come first, in the folder `tuning`; the cells that are compared wait for them.

A broken cell does not keep the others; all are named at the end, and the exit code is the first's.
"""

if __name__ == "__main__":
    from ctssl_jax.hosts import platform, signals

    signals.end_at_signals()
    platform.use_huge_pages()

import argparse
import contextlib
import functools
import os
import shlex
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ctssl_jax import command as frame
from ctssl_jax import config_help, main
from ctssl_jax.ablation import AblationConfig, Cell
from ctssl_jax.config import FinetuneConfig
from ctssl_jax.data import open_dataset
from ctssl_jax.dataset.splits import folds_of
from ctssl_jax.errors import (
    ConfigError,
    DataError,
    Preempted,
    StorageError,
    UserError,
    one_line,
)
from ctssl_jax.files import make_private
from ctssl_jax.hosts import distributed
from ctssl_jax.hosts.signals import Supervisor
from ctssl_jax.log import duration, log_line, time_of_end
from ctssl_jax.run import lock as run_lock
from ctssl_jax.run.opening import open_labelled
from launch import local
from launch.sweep import folder, pool
from launch.sweep.command_line import command_line

NAME = "launch.sweep"


class Flags(frame.Parser):
    """The sweep's own flags."""

    def __init__(self) -> None:
        super().__init__(prog=f"python -m {NAME}", add_help=False)
        self.add_argument("--dry_run", action="store_true")
        self.add_argument("--price_per_hour", type=float, default=0.0)
        self.add_argument("--parallel", type=int, default=1)
        self.add_argument("--gpus", action=frame.List, default="")
        self.add_argument("--cell", type=int)

    def parse(self, argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """The flags, and the arguments that are left for `flags.parse`."""
        own, others = self.parse_known_args(argv[1:])
        if own.parallel < 1:
            raise ConfigError(f"--parallel={own.parallel}: must be 1 or more")
        if own.price_per_hour < 0:
            raise ConfigError(f"--price_per_hour={own.price_per_hour}: must not be negative")
        own.gpus = [gpu.strip() for gpu in own.gpus.split(",") if gpu.strip()]
        if own.gpus and own.parallel == 1:
            raise ConfigError("--gpus goes with --parallel: set CUDA_VISIBLE_DEVICES")
        return own, [argv[0], *others]


class Broken(UserError):
    """Cells that ended with an error; the exit code is that of the first."""

    def __init__(self, ends: Sequence[pool.Ended], cells: int):
        by_line: dict[str, list[str]] = {}
        for end in ends:
            by_line.setdefault(end.last_line, []).append(end.name)
        named = "; ".join(f"{', '.join(names)} ({line})" for line, names in by_line.items())
        super().__init__(
            f"{len(ends)} of {cells} cells broke, repeat the command to try them again: {named}"
        )
        self.exit_code = ends[0].code


class Sweep(NamedTuple):
    """What is asked for: the grid, the numbers of its cells that are to run, where and how."""

    grid: list[Cell]
    chosen: Sequence[int]
    workdir: Path
    parallel: int

    def ready(self, cells: Iterable[Cell]) -> list[tuple[Cell, Cell | None]]:
        """Cells, each with itself at its learning rate; None where that is still to be chosen."""
        tries = [cell for cell in self.grid if cell.tries]
        done = {c.name for c in tries if folder.state(c, self.workdir) == folder.DONE}
        return [(cell, folder.with_lr(cell, done, self.workdir)) for cell in cells]

    def asked(self) -> list[Cell]:
        """The chosen cells."""
        return [self.grid[number] for number in self.chosen]

    def todo(self) -> list[Cell]:
        """The chosen cells that are not done."""
        return [
            cell
            for cell, ready in self.ready(self.asked())
            if ready is None or folder.state(ready, self.workdir) != folder.DONE
        ]

    def require_one_recipe(self) -> None:
        """Raises `ConfigError` where a cell's folder is of another config, data or encoder.

        Before any cell is run: those that are not there yet would not compare with it. What is
        damaged is left to its cell, as is a folder whose encoder has changed, which is renewed.
        """
        for cell, ready in self.ready(self.grid):
            run = self.workdir / cell.name
            if folder.state(ready or cell, self.workdir) in ("to do", folder.CHANGED):
                continue
            with contextlib.suppress(StorageError):
                if differs := folder.difference(ready or cell, run, but_lr=ready is None):
                    raise ConfigError(
                        f"{run} was made by another sweep ({differs}): nothing is run; repeat the "
                        "command as it was, or give another --workdir"
                    )

    def rename(self) -> None:
        """Moves what was done of encoders that were alone in their arm, or are so now."""
        for line in folder.rename(self.grid, self.workdir):
            print(line, flush=True)

    def renew(self, todo: Sequence[Cell]) -> None:
        """Sets aside the runs whose encoder has changed, and says so."""
        for _, cell in self.ready(todo):
            if cell is not None and folder.state(cell, self.workdir) == folder.CHANGED:
                folder.set_aside(cell, self.workdir)
                print(f"{cell.name}: the encoder has changed: anew", flush=True)

    def in_rounds(
        self, todo: Sequence[Cell], run: Callable[[Sequence[Cell]], Iterator[pool.Ended]]
    ) -> Iterator[pool.Ended]:
        """Runs first what tries learning rates, then the rest with those chosen."""
        yield from run([cell for cell in todo if cell.tries])
        ready = []
        for cell, found in self.ready([cell for cell in todo if not cell.tries]):
            if found is not None:
                ready.append(found)
            else:
                wanted = next(iter(cell.tuning.values()))[0]
                told = f"waits for its learning rate: run the tuning cells, as {wanted}"
                yield pool.Ended(cell.name, ConfigError.exit_code, told)
        yield from run(ready)

    def seconds(self, cells: Iterable[Cell]) -> tuple[float, int]:
        """How long cells will take, and of how many of them that is not known."""
        expected = folder.expected_seconds(self.grid, self.workdir)
        each = [expected[cell.name] for cell in cells]
        known = [seconds for seconds in each if seconds is not None]
        return sum(known) / self.parallel, len(each) - len(known)


def run(own: argparse.Namespace, config: object, workdir: Path, supervisor: Supervisor) -> None:
    """Runs all cells that are not done, or tells what there is to do."""
    if not isinstance(config, AblationConfig):
        raise ConfigError(
            f"config is a {type(config).__name__}: give one of a study, as ablation:cases"
        )
    config.validate()
    grid = list(config.cells())
    if own.cell is not None and not 0 <= own.cell < len(grid):
        raise ConfigError(f"--cell={own.cell}: there are the cells 0 to {len(grid) - 1}")
    folder.require_own_table(workdir)
    chosen = range(len(grid)) if own.cell is None else [own.cell]
    sweep = Sweep(grid, chosen, workdir, own.parallel)
    if own.dry_run:
        tell(sweep, own.price_per_hour)
    elif own.parallel == 1:
        main.provide_phantom(config.base.data.path)
        _require_folds(config)
        distributed.on_first(sweep.rename)
        todo = sweep.todo()
        _require_sound(todo)
        sweep.require_one_recipe()
        distributed.on_first(lambda: sweep.renew(todo))
        ends = sweep.in_rounds(todo, lambda cells: in_turn(cells, workdir, supervisor))
        follow(sweep, todo, ends, distributed.say, distributed.on_first)
    else:  # JAX is left to the children
        if config.base.data.path in main.PHANTOMS:
            main.prepare_phantom(config.base.data.path)
        _require_folds(config)
        sweep.rename()
        todo = sweep.todo()
        _require_sound(todo)
        sweep.require_one_recipe()
        sweep.renew(todo)
        places = local.environments(os.environ, own.parallel, 0, own.gpus)

        def start(cells: Sequence[Cell]) -> Iterator[pool.Ended]:
            words = [(cell.name, _words(cell, workdir)) for cell in cells]
            commands = [(name, [sys.executable, "-m", *own]) for name, own in words]
            return pool.run(commands, places, supervisor)

        ends = sweep.in_rounds(todo, start)
        follow(sweep, todo, ends, functools.partial(print, flush=True), lambda write: write())


def _require_folds(config: AblationConfig) -> None:
    """Raises `DataError` where the dataset has not the folds that the cells are to test."""
    if not (folds := config.folds):
        return
    dataset = open_dataset(config.base.data.path)
    if len(folds_of(dataset.manifest["splits"])) != folds:
        raise DataError(
            f"folds={folds}: {dataset.name} has the splits "
            f"{', '.join(dataset.manifest['splits'])}; prepare it with --folds={folds}"
        )


def _require_sound(cells: Sequence[Cell]) -> None:
    """Opens the data for some cells, so that what each would be refused for is told once.

    Of each kind and encoder the smallest cell, and the largest of all; no device is started. What
    is damaged is left to the cells that meet it.

    Raises:
      ConfigError, DataError: the first of what is wrong.
    """
    some: dict[object, Cell] = {}
    for cell in cells:
        some.setdefault((type(cell.config), cell.config.encoder_run), cell)
    for cell in [*some.values(), *cells[-1:]]:
        with contextlib.suppress(StorageError):
            open_labelled(cell.config, within="base.")


def in_turn(cells: Sequence[Cell], workdir: Path, supervisor: Supervisor) -> Iterator[pool.Ended]:
    """Runs cells one after the other in this process; yields each as it ends.

    Where several processes make each run, an error ends them all. One that is no user's to mend
    breaks its cell alone; its traceback is in the run's `log.txt`.
    """
    import jax

    from ctssl_jax.frozen.store import FeatureStore

    store = FeatureStore()
    for cell in cells:
        path = workdir / cell.name
        distributed.say(cell.name)
        try:
            main.run(cell.config, path, supervisor, store)
        except Exception as error:
            several = jax.process_count() > 1
            failure = frame.for_user(error, several)
            if several:
                raise
            if failure is None:
                failure = UserError(f"{type(error).__name__}: {one_line(error)[:200]}")
                if run_lock.is_held(path):
                    log_line(path, traceback.format_exc())
                else:  # a folder that it has not begun stays as it is
                    traceback.print_exc()
            frame.mark_ended(path, failure.exit_code)
            if isinstance(failure, Preempted):
                raise
            supervisor.resumable = False  # nothing that is not saved will be now
            yield pool.Ended(cell.name, failure.exit_code, str(failure))
        else:
            yield pool.Ended(cell.name, 0, "")


def follow(
    sweep: Sweep,
    todo: Sequence[Cell],
    ends: Iterable[pool.Ended],
    say: Callable[[str], None],
    once: Callable[[Callable[[], None]], None],
) -> None:
    """Tells how the cells end, and keeps `results.csv`; `once` does so for all processes.

    Raises:
      Broken: some ended with an error.
    """
    make_private(sweep.workdir)
    write = functools.partial(folder.write_table, sweep.workdir)
    left, broken = {cell.name: cell for cell in todo}, list[pool.Ended]()
    cells = len(sweep.chosen)
    say(f"[{cells - len(left)}/{cells}] cells are done")
    for end in ends:
        del left[end.name]
        if end.code:
            broken.append(end)
            say(f"{end.name} broke (exit code {end.code}): {end.last_line}")
        once(write)
        say(f"[{cells - len(left) - len(broken)}/{cells}] {_outlook(sweep, left.values())}")
    once(write)
    if late := folder.unfinished(sweep.asked(), sweep.workdir):
        say(
            f"WARNING: {len(late)} runs were best at their last step, {late[0]} among them: not "
            "finished learning, give more steps or epochs"
        )
    if broken:
        raise Broken(broken, cells)


def _outlook(sweep: Sweep, left: Collection[Cell]) -> str:
    seconds, unknown = sweep.seconds(left)
    if not left or unknown == len(left):
        return "done"
    at = time_of_end(seconds)
    return f"done, about {duration(seconds)} left, until {at}" + _and_unknown(unknown)


def _and_unknown(cells: int) -> str:
    return f", and {cells} cells of a kind that was not yet run" if cells else ""


def tell(sweep: Sweep, price_per_hour: float) -> None:
    """Prints the cells as a shell script of ordinary commands, with what they will take."""
    counts = Counter[str]()
    for number, (asked, cell) in zip(sweep.chosen, sweep.ready(sweep.asked()), strict=True):
        if cell is None:
            counts["waiting"] += 1
            print(f"# {number} {asked.name}: waits for its learning rate, of {list(asked.tuning)}")
            continue
        state = folder.state(cell, sweep.workdir)
        counts[state] += 1
        seconds, unknown = sweep.seconds([cell])
        about = "" if unknown or state == folder.DONE else f", about {duration(seconds)}"
        print(f"# {number} {cell.name}: {state}{about}")
        print(shlex.join(["python", "-m", *_words(cell, sweep.workdir)]))
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    print(f"# {len(sweep.chosen)} cells: {states}")
    todo = sweep.todo()
    seconds, unknown = sweep.seconds(todo)
    if todo and unknown == len(todo):
        print("# how long they take is known once one is done: --cell=0 runs the smallest")
    elif todo:
        cost = f", at {price_per_hour:g} an hour {seconds / 3600 * price_per_hour:.2f}"
        print(
            f"# to do: about {duration(seconds)}, {sweep.parallel} at a time"
            f"{cost if price_per_hour else ''}{_and_unknown(unknown)}"
        )


def _words(cell: Cell, workdir: Path) -> list[str]:
    return command_line(cell.config, cell.file, workdir / cell.name)


def command(argv: list[str]) -> int:
    """The command; returns its exit code."""
    if config_help.asked(argv):
        defaults = [AblationConfig(base=FinetuneConfig(), base_config="NAME")]
        doc = f"{__doc__}\nOwn flags: {Flags().format_usage()}"
        return frame.run(NAME, lambda: print(config_help.help_text(argv, doc, defaults)))
    try:
        own, others = Flags().parse(argv)
    except ConfigError as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return error.exit_code
    computes = own.parallel == 1 and not own.dry_run
    return frame.execute(others, functools.partial(run, own), NAME, devices=computes)


if __name__ == "__main__":
    frame.end(command(sys.argv))
