"""Reads damaged files one by one, in limited memory, and says what became of each.

A process of its own: `python fuzz_worker.py FOLDER FIRST`. It prints a line before and one after
each file of the folder, so that who started it knows on which file it died.
"""

import resource
import sys
import traceback
from pathlib import Path

MEMORY = 4 * 2**30
SECONDS = 60  # of processor time for one file


def source_of(path: Path):
    """The source that takes files of this name."""
    if path.suffix == ".dcm":
        from data_prep.dicom import DicomSource
        from data_prep.irregular import Irregular

        return DicomSource(path, Irregular.ACCEPT_2D)
    if path.name.endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
        from data_prep.volumes import VolumeSource

        return VolumeSource(path)
    from data_prep.readers.images import ImageSource, numbered
    from data_prep.source import Item

    return ImageSource("fuzz", (), 8, listed=numbered([Item(1, str(path), patient="P1")]))


def main(folder: Path, first: int) -> None:
    from dicom_files import outcome

    from ctssl_jax.errors import UserError

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, path in enumerate(sorted(folder.iterdir())):
        if number < first:
            continue
        print("begin", number, flush=True)
        used = int(resource.getrusage(resource.RUSAGE_SELF).ru_utime)
        resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, resource.RLIM_INFINITY))
        try:
            found = outcome(source_of(path))
            reasons = ["a slice" for _ in found.slices] + found.reasons
        except UserError as error:
            reasons = [f"source: {error}"]
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            reasons = [f"RAISED {type(error).__name__} in {Path(where.filename).name}"]
        print("end", number, "|".join(sorted(set(reasons))) or "nothing", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
