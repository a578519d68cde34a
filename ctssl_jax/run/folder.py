"""The folder of a run: made once, refused to another config, resumed by the same command."""

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from ctssl_jax import __version__
from ctssl_jax.augment import Intensity
from ctssl_jax.config import Config, config_record, first_difference, to_json
from ctssl_jax.data import Dataset
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.hosts import distributed
from ctssl_jax.metrics import MetricWriter, SilentWriter, Writer
from ctssl_jax.run import lock as run_lock

SHARED_S = 30.0  # that a new file may take to be seen by other hosts (NFS)


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.rename(path)


def read_json(path: Path) -> Any:
    """Reads a JSON file of a run; `StorageError` where that cannot be done."""
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        raise StorageError(f"{path} cannot be read: give another run folder") from None


def open_run(
    workdir: Path,
    config: Config,
    dataset: Dataset,
    *,
    audit: dict[str, Any],
    kept: dict[str, Any] | None = None,
    encoder_run: str = "",
) -> bool:
    """Makes the run folder, or checks that it was made by the same config and data.

    Process 0 does so for all; the others check that they see the same folder and data.
    Writes `config.json`, `data.json`, `env.json` and `STATUS`; no path, host or user name.

    Args:
      workdir: the folder.
      config: of the run.
      dataset: that it reads.
      audit: what the gate says of the dataset.
      kept: which slices a filter keeps, in numbers.
      encoder_run: that the run starts from; its hash is noted.

    Returns:
      Whether the run has already ended well; then nothing is touched.

    Raises:
      ConfigError: the folder belongs to another config or dataset, or holds something else, or
        another run is writing it.
      StorageError: it cannot be written.
    """
    record = config_record(config)
    data = {
        key: dataset.manifest[key]
        for key in ("name", "fingerprint", "intensity", "classes", "splits")
    } | {"audit": audit, "filter": kept, "encoder_run": run_hash(encoder_run)}
    told = (  # where the manifest has them
        *("source_kind", "origin", "note", "canvas"),
        *("patients_known", "labels_of", "positive", "case", "cases", "options"),
    )
    data |= {key: dataset.manifest[key] for key in told if key in dataset.manifest}

    def make() -> dict[str, Any]:
        done = _make_run(workdir, record, data)
        return {"done": done, "hash": record["hash"], "fingerprint": data["fingerprint"]}

    first = distributed.on_first(make)
    if not distributed.is_first():
        _require_shared(workdir, record, data, first)
    return first["done"]


def _make_run(workdir: Path, record: dict[str, Any], data: dict[str, Any]) -> bool:
    try:
        if _is_done(workdir, record, data):
            return True
        workdir.mkdir(parents=True, exist_ok=True)
        run_lock.take(workdir)
        if _is_done(workdir, record, data):  # meanwhile, by another process
            run_lock.release(workdir)
            return True
        for leftover in (*workdir.glob("*.tmp"), *workdir.glob("figures/*.tmp")):
            leftover.unlink()  # of a write that a kill cut short
        write_json(workdir / "env.json", environment(record["config"]["precision"]))
        write_json(workdir / "data.json", data)
        (workdir / "STATUS").write_text("running\n")
        write_json(workdir / "config.json", record)
        return False
    except OSError as error:
        raise StorageError(f"run folder {workdir} cannot be written: {error.strerror}") from None


def _is_done(workdir: Path, record: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a run has ended well here; raises where the folder is not this run's."""
    if (workdir / "config.json").exists():
        _require_same_run(workdir, record, data)
        return (workdir / "STATUS").read_text().strip() == "done"
    begun = (workdir / run_lock.NAME).exists()  # and killed, or about to write its config
    if not begun and workdir.exists() and any(workdir.iterdir()):
        raise ConfigError(f"{workdir} is not empty and no run folder: give another --workdir")
    return False


def _require_shared(
    workdir: Path, record: dict[str, Any], data: dict[str, Any], first: dict[str, Any]
) -> None:
    """Raises where this process has another config, dataset or folder than process 0."""
    for name, ours in (("hash", record["hash"]), ("fingerprint", data["fingerprint"])):
        if ours != first[name]:
            what = "config" if name == "hash" else "dataset"
            raise ConfigError(f"process 0 has another {what}: give all processes the same")
    deadline = time.monotonic() + SHARED_S
    while not (workdir / "config.json").exists():
        if time.monotonic() > deadline:
            raise StorageError(
                f"{workdir}, as process 0 made it, is not seen here: --workdir must be on storage "
                "that all processes share"
            )
        time.sleep(0.5)


def writer(workdir: Path, step: int) -> Writer:
    """What a run writes metrics and lines with, from `step` on."""
    if not distributed.is_first():
        return SilentWriter()
    made = MetricWriter(workdir, step)
    known = workdir / "data.json"
    if step == 0 and known.exists() and read_json(known).get("patients_known") is False:
        made.line("the patients of this dataset are not known: its note says what counts as one")
    return made


def _require_same_run(workdir: Path, record: dict[str, Any], data: dict[str, Any]) -> None:
    theirs, their_data = read_json(workdir / "config.json"), read_json(workdir / "data.json")
    if theirs["hash"] != record["hash"]:
        difference = first_difference(record["config"], theirs["config"])
        if theirs["type"] != record["type"]:
            difference = f"type is {theirs['type']} there and {record['type']} here"
        raise ConfigError(
            f"{workdir} was made by another config ({difference}): repeat that command to resume "
            "it, or give another --workdir"
        )
    if their_data["fingerprint"] != data["fingerprint"]:
        raise ConfigError(f"{workdir} was made with other data: give another --workdir")
    if their_data.get("filter") != data["filter"]:
        raise ConfigError(f"{workdir} was made with another data.filter: give another --workdir")
    if their_data.get("encoder_run") != data["encoder_run"]:
        raise ConfigError(f"{workdir} started from another encoder_run: give another --workdir")


def method(run: str) -> str:
    """What made the encoder of a run folder, as an arm of a study: `spark`; no run: `scratch`.

    Raises:
      DataError: the folder is no run of a method.
    """
    if not run:
        return "scratch"
    known = Path(run) / "config.json"
    config = read_json(known)["config"] if known.is_file() else {}
    if "method" not in config:
        raise DataError(f"no run at {run}: config.encoder_run takes a pre-training run folder")
    return config["method"]["type"].lower()


def notes(run: str, intensity: Intensity) -> list[str]:
    """A line where slices enter an encoder otherwise than in its pre-training: no shape shows that.

    What an older run does not say is no difference.
    """
    theirs = read_json(Path(run) / "config.json")["config"]["intensity"]
    ours = {name: value for name, value in to_json(intensity).items() if name in theirs}
    if ours == theirs:
        return []
    difference = first_difference(ours, theirs, "intensity")
    return [f"note: {difference}: the encoder was pre-trained on other input"]


def recipe(run: str) -> dict[str, Any]:
    """What made an encoder, but for its seed: two runs of one recipe repeat each other."""
    made, data = read_json(Path(run) / "config.json"), {}
    if (Path(run) / "data.json").is_file():
        data = read_json(Path(run) / "data.json")
    config = {name: value for name, value in made["config"].items() if name != "seed"}
    of_data = {name: data.get(name) for name in ("fingerprint", "filter", "encoder_run")}
    return {"type": made.get("type"), "config": config, "data": of_data}


def run_hash(run: str) -> str | None:
    """The hash of a run folder's config, by which results name it; None for no run."""
    return read_json(Path(run) / "config.json")["hash"] if run else None


def write_subset(workdir: Path, record: dict[str, Any]) -> None:
    """Writes `subset.json`."""
    if distributed.is_first():
        write_json(workdir / "subset.json", record)


def write_results(workdir: Path, results: dict[str, Any]) -> None:
    """Writes `results.json` and that the run is done."""
    if distributed.is_first():
        write_json(workdir / "results.json", results)
    set_status(workdir, "done")


def set_status(workdir: Path, status: str) -> None:
    """`running`, `done`, `preempted`, `interrupted` or `failed:CODE`."""
    if distributed.is_first():
        (workdir / "STATUS").write_text(status + "\n")
        if status == "done":
            run_lock.release(workdir)


def environment(precision: str) -> dict[str, Any]:
    """Versions, code and devices, for the record."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    return {
        "python": platform.python_version(),
        "ctssl_jax": __version__,
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": code_commit(),
        "device": jax.devices()[0].device_kind,
        "device_count": jax.device_count(),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "precision": precision,
    }


def code_commit() -> str | None:
    """The git commit of this code, with `+dirty` if files differ from it; None outside a clone."""
    here = Path(__file__).parent
    try:
        described = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty=+dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
