"""The folder of a run: made once, refused to another config, resumed by the same command."""

import importlib.metadata
import os
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import jax

from ctssl_jax import __version__, files
from ctssl_jax.augment import Intensity
from ctssl_jax.config import Config, PretrainConfig
from ctssl_jax.config_record import config_record, first_difference, to_json, without
from ctssl_jax.data import Dataset
from ctssl_jax.errors import ConfigError, DataError, StorageError, UserError
from ctssl_jax.hosts import distributed
from ctssl_jax.log import MetricWriter, SilentWriter, Writer, log_line
from ctssl_jax.run import lock as run_lock

STATUS = "STATUS"
DONE = "done"
WEIGHTS = "weights_sha256"  # of the encoder that a run starts from
SUMS = "files"
OUTCOMES = ("predictions*.csv", "embeddings.npz", "subset.json")
"""Files whose sums `results.json` holds."""
BEGUN = {run_lock.NAME, "env.json", "data.json", STATUS, "config.json"}
"""Files that a start has written once its config is: all that one can leave that ends before."""
SHARED_S = 30.0  # that a new file may take to be seen by other hosts (NFS)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file of a run, sealed, whole or not at all."""
    files.write_json(path, files.sealed(content))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON file of a run; `StorageError` where that cannot be done, or it is damaged."""
    try:
        return files.read_json(path)
    except files.Damaged as error:
        raise StorageError(f"{path} {error}: restore it, or give another run folder") from None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read ({error.strerror}): give another run folder"
        ) from None


def read_status(run: Path) -> str:
    """What `STATUS` of a run says; "unknown" where it is missing or no text."""
    try:
        return files.read_text(run / STATUS, limit=100).strip() or "unknown"
    except (OSError, files.Damaged):
        return "unknown"


def open_run(
    workdir: Path,
    config: Config,
    dataset: Dataset,
    *,
    audit: dict[str, Any],
    kept: dict[str, Any] | None = None,
    encoder_run: str = "",
    encoder: dict[str, Any] | None = None,
    batch_size: int | None = None,
    probe: str | None = None,
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
      encoder: what is known of its encoder; see `run.encoder`.
      batch_size: of a step, where it is not that of the config: steps of another size are not
        steps of this run.
      probe: fingerprint of the dataset that the encoder is scored on as it learns, if any.

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
    data |= {"encoder": encoder} if encoder else {}
    data |= {"batch_size": batch_size} if batch_size else {}
    data |= {"probe": probe} if probe else {}
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
        if workdir.exists():
            files.require_ordinary_files(workdir)
        if _is_done(workdir, record, data):
            return True
        files.make_private(workdir)
        run_lock.take(workdir)
        try:
            done = _is_done(workdir, record, data)  # meanwhile, by another process
        except UserError:
            run_lock.release(workdir)  # whose folder it is not leaves it as it is
            raise
        if done:
            run_lock.release(workdir)
            return True
        changed = _changed(workdir, record)
        for leftover in (*workdir.glob("*.tmp"), *workdir.glob("figures/*.tmp")):
            leftover.unlink()  # of a write that a kill cut short
        write_json(workdir / "env.json", environment(record["config"]["precision"]))
        write_json(workdir / "data.json", _probed(workdir) | data)
        files.write_text(workdir / STATUS, "running\n")
        write_json(workdir / "config.json", record)
        if changed:
            log_line(workdir, changed)
        return False
    except OSError as error:
        of = f" ({error.filename})" if error.filename else ""
        raise StorageError(f"run folder {workdir} cannot be used: {error.strerror}{of}") from None


def _probed(workdir: Path) -> dict[str, Any]:
    """What the encoder was scored on before, of which a part without a probe says nothing."""
    before = read_json(workdir / "data.json") if (workdir / "data.json").exists() else {}
    return {"probe": before["probe"]} if "probe" in before else {}


def _is_done(workdir: Path, record: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether a run has ended well here; raises where the folder is not this run's."""
    there = {path.name for path in workdir.iterdir()} if workdir.exists() else set()
    if "config.json" in there:
        _require_same_run(workdir, record, data)
        return read_status(workdir) == DONE
    if there and not _is_begun(workdir, there):
        raise ConfigError(
            f"{workdir} is not empty and no run folder (no config.json): give another --workdir"
        )
    return False


def _is_begun(workdir: Path, there: set[str]) -> bool:
    """Whether all of a folder is what a start leaves that ends before it has written its config."""
    targets = {re.sub(r"\.\d+\.tmp$", "", name) for name in there}  # as `files` names half a file
    if run_lock.NAME not in there or not targets <= BEGUN:
        return False
    # These are whole where they are, and others may have files of such names, too.
    return all(files.is_sealed(workdir / name) for name in there & {"env.json", "data.json"})


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


def _changed(workdir: Path, record: dict[str, Any]) -> str:
    """A line where a run goes on with other elastic fields than it had; "" of a fresh run."""
    if not (workdir / "config.json").exists():
        return ""
    theirs = read_config(workdir)
    before = theirs.get("elastic") or {}
    if record["hash"] != theirs["hash"] or record["elastic"] == before:
        return ""
    difference = first_difference(record["elastic"], before)
    return f"goes on with another setting ({difference}): the numbers do not depend on it"


def _require_same_run(workdir: Path, record: dict[str, Any], data: dict[str, Any]) -> None:
    theirs, their_data = read_config(workdir), read_json(workdir / "data.json")
    before = without(theirs["config"], record["elastic"])  # of older runs more fields counted
    if (theirs["type"], before) != (record["type"], record["config"]):
        difference = first_difference(record["config"], before)
        if theirs["type"] != record["type"]:
            difference = f"type is {theirs['type']} there and {record['type']} here"
        mend = "repeat that command to resume it, or give another --workdir"
        if difference.startswith("config.epochs "):
            mend = (
                "the schedules of learning rate and weight decay end with the epochs, so that the "
                "steps that are done would be of another run; to train longer, start from its "
                f"weights with --config.encoder_run={workdir} in another --workdir"
            )
        raise ConfigError(f"{workdir} was made by another config ({difference}): {mend}")
    if their_data.get("fingerprint") != data["fingerprint"]:
        raise ConfigError(f"{workdir} was made with other data: give another --workdir")
    if their_data.get("filter") != data["filter"]:
        raise ConfigError(f"{workdir} was made with another data.filter: give another --workdir")
    size = their_data.get("batch_size")  # of older runs it is not known
    if size not in (None, data.get("batch_size")):
        raise ConfigError(
            f"{workdir} was made in steps of {size}, which here are of {data.get('batch_size')}: "
            "give another --workdir"
        )
    if None not in (probed := {their_data.get("probe"), data.get("probe")}) and len(probed) > 1:
        raise ConfigError(
            f"{workdir} has scores of another dataset (probe.path), beside which those of this one "
            "would not compare: give that one, or another --workdir"
        )
    if their_data.get("encoder_run") != data["encoder_run"]:
        raise ConfigError(f"{workdir} started from another encoder_run: give another --workdir")
    if weights_of(their_data) not in (None, weights_of(data)):
        raise ConfigError(
            f"{workdir} started from other weights of encoder_run, which has changed since: give "
            "another --workdir"
        )


def weights_of(data: dict[str, Any]) -> str | None:
    """The sum of the encoder that a run started from; None of older runs, and from scratch."""
    return (data.get("encoder") or {}).get(WEIGHTS)


def method(run: str) -> str:
    """What made the encoder of a run folder, as an arm of a study: `spark`; no run: `scratch`.

    Raises:
      DataError: the folder is no run of a method.
    """
    if not run:
        return "scratch"
    known = Path(run) / "config.json"
    config = read_config(Path(run))["config"] if known.exists() else {}
    if "type" not in config.get("method", {}):
        raise DataError(f"no run at {run}: config.encoder_run takes a pre-training run folder")
    return str(config["method"]["type"]).lower()


def notes(run: str, intensity: Intensity) -> list[str]:
    """A line where slices enter an encoder otherwise than in its pre-training: no shape shows that.

    What an older run does not say is no difference.
    """
    theirs = read_config(Path(run))["config"].get("intensity", {})
    ours = {name: value for name, value in to_json(intensity).items() if name in theirs}
    if ours == theirs:
        return []
    difference = first_difference(ours, theirs, "intensity")
    return [f"note: {difference}: the encoder was pre-trained on other input"]


def recipe(run: str) -> dict[str, Any]:
    """What made an encoder, but for its seed: two runs of one recipe repeat each other."""
    made, data = read_config(Path(run)), read_data(Path(run)) or {}
    free = {"seed": 0} | config_record(PretrainConfig())["elastic"]  # an older record holds some
    config = without(made["config"], free)
    of_data = {name: data.get(name) for name in ("fingerprint", "filter", "encoder_run")}
    return {"type": made.get("type"), "config": config, "data": of_data}


def run_hash(run: str) -> str | None:
    """The hash of a run folder's config, by which results name it; None for no run."""
    return read_config(Path(run))["hash"] if run else None


def read_config(run: Path) -> dict[str, Any]:
    """What `config.json` of a run holds: `hash`, `config` and, but of old runs, `type`.

    Raises:
      StorageError: it cannot be read, or holds anything else.
    """
    record = read_json(run / "config.json")
    if not isinstance(record.get("config"), dict) or not isinstance(record.get("hash"), str):
        raise StorageError(f"{run}/config.json is none of a run: give another run folder")
    return {"type": ""} | record


def read_data(run: Path) -> dict[str, Any] | None:
    """What `data.json` of a run holds; None where there is none, as of an import.

    Raises:
      StorageError: it cannot be read.
    """
    return read_json(run / "data.json") if (run / "data.json").exists() else None


def write_subset(workdir: Path, record: dict[str, Any]) -> None:
    """Writes `subset.json`."""
    if distributed.is_first():
        write_json(workdir / "subset.json", record)


def write_results(workdir: Path, results: dict[str, Any]) -> None:
    """Writes `results.json`, with the sums of the files beside it, and that the run is done."""
    if distributed.is_first():
        beside = sorted(path for pattern in OUTCOMES for path in workdir.glob(pattern))
        sums = {path.name: files.sha256(path) for path in beside}
        write_json(workdir / "results.json", results | {SUMS: sums})
    set_status(workdir, DONE)


def read_results(run: Path) -> dict[str, Any]:
    """The results of a run that is done, once the files beside them are as they were written.

    Raises:
      StorageError: the results cannot be read, or one of the files is damaged or missing.
    """
    results = read_json(run / "results.json")
    sums = results.pop(SUMS, {})
    for name, wanted in sums.items() if isinstance(sums, dict) else ():
        require_sum(run / str(name), wanted)
    return results


def require_sum(path: Path, wanted: str) -> None:
    """Raises `StorageError` unless a file's sum is the one that was noted."""
    try:
        found = files.sha256(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be read ({error.strerror}): restore it") from None
    if found != wanted:
        raise StorageError(
            f"{path} is damaged, or was changed after it was written: restore it, or repeat the "
            "run in another --workdir"
        )


def set_status(workdir: Path, status: str) -> None:
    """`running`, `done`, `preempted`, `interrupted` or `failed:CODE`."""
    if distributed.is_first():
        files.write_text(workdir / STATUS, status + "\n")
        if status == DONE:
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
