"""How fast slices are prepared on this machine, and how much memory that takes.

    python -m launch.benchmark_preparation [--series=10,100,1000] [--slices=250] [--size=64]
        [--scan=FOLDER] [--workers=1,2] [--repeats=1] [--folder=SCRATCH] [--out=FILE.json]

For each number of series it writes that many synthetic DICOM series, or as many patients with the
scan of yours that is named, prepares them with each number of processes by `python -m
data_prep.dicom`, and removes both. Peak memory is the largest sum of the
anonymous memory of all processes of the command, sampled (Linux); it should not grow with the
archive. It measures only.
"""

import contextlib
import io
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pydicom
from jaxtyping import UInt16
from PIL import Image

from ctssl_jax import command

SAMPLE_SECONDS = 0.25
# Fixed widths, so that one written file is a template for all.
PATIENT, POSITION = "patient{:08d}", "{:010.3f}"


def series_uid(series: int) -> str:
    """Of a series, always 22 characters."""
    return f"1.2.826.0.1.{10**9 + series}"


def study_uid(series: int) -> str:
    """Of a study, always 22 characters; each series is a patient's only one."""
    return f"1.2.826.0.2.{10**9 + series}"


def instance_uid(series: int, index: int) -> str:
    """Of a slice, always 29 characters."""
    return f"{series_uid(series)}.{10**5 + index}"


def template(size: int) -> bytes:
    """A DICOM file of series 0, slice 0, without its pixels, which come last."""
    from data_prep.phantom.source import dicom_of
    from data_prep.source import Slice

    stored = np.zeros((size, size), np.uint16)
    item = Slice(stored.astype(np.int16), "", "", 0, 0.0, (1.0, 1.0, 1.0))
    data = dicom_of(stored, item, "benchmark", signed=False)
    data.StudyInstanceUID, data.SeriesInstanceUID = study_uid(0), series_uid(0)
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = instance_uid(0, 0)
    data.PatientID = PATIENT.format(0)
    data.ImagePositionPatient = ["0", "0", POSITION.format(0)]
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()[: -stored.nbytes]


def patient_pixels(number: int, size: int) -> UInt16[np.ndarray, "{size} {size}"]:
    """A patient of soft blobs and noise, unlike the others, in 12 bits."""
    rng = np.random.default_rng(number)
    blobs = Image.fromarray(rng.uniform(0, 2000, (8, 8)).astype(np.float32))
    smooth = np.asarray(blobs.resize((size, size), Image.Resampling.BICUBIC))
    return (smooth + rng.normal(0, 20, (size, size))).clip(0, 4095).astype("<u2")


def write_series(folder: Path, series: int, slices: int, size: int) -> None:
    """Writes the archive, each series in a folder of its own."""
    first = template(size)
    for number in range(series):
        home = folder / f"{number:06d}"
        home.mkdir(parents=True)
        of_series = first.replace(PATIENT.format(0).encode(), PATIENT.format(number).encode())
        pixels = patient_pixels(number, size)
        for index in range(slices):
            head = of_series
            for old, new in (
                (instance_uid(0, 0), instance_uid(number, index)),
                (series_uid(0), series_uid(number)),
                (study_uid(0), study_uid(number)),
                (POSITION.format(0), POSITION.format(2.5 * index)),
            ):
                head = head.replace(old.encode(), new.encode())
            moved = np.roll(pixels, index // 8, axis=0)
            (home / f"{index:06d}.dcm").write_bytes(head + moved.tobytes())


def write_copies(folder: Path, series: int, scan: Path) -> int:
    """Writes an uncompressed DICOM series as that of many patients; returns its slices.

    Each is moved by so many rows, so that no two are the same.
    """
    files = [pydicom.dcmread(path) for path in sorted(scan.iterdir())]
    images = [file.pixel_array for file in files]
    for number in range(series):
        home = folder / f"{number:06d}"
        home.mkdir(parents=True)
        for index, (file, image) in enumerate(zip(files, images, strict=True)):
            file.PatientID = PATIENT.format(number)
            file.StudyInstanceUID, file.SeriesInstanceUID = study_uid(number), series_uid(number)
            file.SOPInstanceUID = instance_uid(number, index)
            file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID
            file.PixelData = np.roll(image, number, axis=0).tobytes()
            file.save_as(home / f"{index:06d}.dcm")
    return len(files)


def anonymous_mib(process: psutil.Process) -> float:
    """Memory of a process that is its own and no file's."""
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    return 0.0


def timed(source: Path, out: Path, workers: int) -> tuple[float, float]:
    """Seconds and peak MiB of one preparation."""
    key = out.parent / "key"
    key.write_text("0123456789abcdef")
    command = [sys.executable, "-m", "data_prep.dicom", f"--source={source}", f"--out={out}"]
    command += [f"--key={key}", f"--workers={workers}"]
    began = time.perf_counter()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)
    peak = 0.0

    def sample() -> None:
        nonlocal peak
        while process.poll() is None:
            total = 0.0
            with contextlib.suppress(psutil.NoSuchProcess):  # the preparation has just ended
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(OSError):  # one of its processes has
                        total += anonymous_mib(one)
            peak = max(peak, total)
            time.sleep(SAMPLE_SECONDS)

    sampler = threading.Thread(target=sample)
    sampler.start()
    code = process.wait()
    sampler.join()
    if code:
        raise SystemExit(f"benchmark_preparation: the preparation failed with exit code {code}")
    return time.perf_counter() - began, peak


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from "1,2,3"."""
    return tuple(int(part) for part in text.split(","))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.Parser(prog="python -m launch.benchmark_preparation", description=__doc__)
    parser.add_argument("--series", type=numbers, default=(10, 100, 1000))
    parser.add_argument("--workers", type=numbers, default=(1, 2))
    parser.add_argument("--slices", type=int, default=250, help="of a series")
    parser.add_argument("--size", type=int, default=64, help="rows and columns in pixels")
    parser.add_argument("--scan", type=Path, help="folder of a DICOM series, in place of these")
    parser.add_argument("--repeats", type=int, default=1, help="of each; the median is told")
    parser.add_argument("--folder", type=Path, help="where the archive goes for a while")
    parser.add_argument("--out", type=Path, help="a JSON file to write")

    def work() -> None:
        args = parser.parse_args(argv)
        rows: list[dict[str, Any]] = []
        heads = ("series", "slices", "workers", "s", "slices/s", "per core", "MiB")
        print("".join(f"{head:>10}" for head in heads))
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            for series in args.series:
                source = Path(name) / "archive"
                slices = args.slices
                if args.scan:
                    slices = write_copies(source, series, args.scan)
                else:
                    write_series(source, series, slices, args.size)
                tried: dict[int, list[tuple[float, float]]] = {w: [] for w in args.workers}
                for _ in range(args.repeats):
                    for workers in args.workers:
                        out = Path(name) / "dataset"
                        tried[workers].append(timed(source, out, workers))
                        shutil.rmtree(out)
                shutil.rmtree(source)
                for workers, results in tried.items():
                    seconds = statistics.median(s for s, _ in results)
                    rate = series * slices / seconds
                    rows.append(
                        {
                            "series": series,
                            "slices": series * slices,
                            "size": None if args.scan else args.size,
                            "workers": workers,
                            "seconds": seconds,
                            "slices_per_second": rate,
                            "slices_per_second_per_core": rate / max(workers, 1),
                            "peak_mib": max(mib for _, mib in results),
                        }
                    )
                    cells = [f"{series:,}", f"{series * slices:,}", workers, f"{seconds:.1f}"]
                    cells += [f"{rate:,.0f}", f"{rate / max(workers, 1):,.0f}"]
                    cells += [f"{rows[-1]['peak_mib']:,.0f}"]
                    print("".join(f"{cell:>10}" for cell in cells), flush=True)
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n")

    return command.run("launch.benchmark_preparation", work)


if __name__ == "__main__":
    sys.exit(main())
