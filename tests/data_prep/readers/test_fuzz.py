"""Thousands of damaged files: each gives slices or reasons, in bounded time and memory.

Minutes. Processes of their own read the files (`fuzz_worker`), since a decoder in C may take its
process with it. In use such a crash costs its series alone (`runners.Pool`); here it is a failure.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from dicom_files import SYNTAXES, compress, write_enhanced
from PIL import Image

HERE = Path(__file__).parent
RNG = np.random.default_rng(20)

Damage = Callable[[bytes], bytes]


def cut(data: bytes) -> bytes:
    return data[: int(RNG.integers(0, len(data)))]


def flip_bytes(data: bytes) -> bytes:
    """Some bytes anywhere, changed to any value."""
    damaged = bytearray(data)
    for at in RNG.integers(0, len(data), int(RNG.integers(1, 20))):
        damaged[at] = int(RNG.integers(0, 256))
    return bytes(damaged)


def flip_header(data: bytes) -> bytes:
    """The same within the first 1,000 bytes, where all formats describe their pixels."""
    return flip_bytes(data[:1000]) + data[1000:]


def flip_pixels(data: bytes) -> bytes:
    """The same within the second half."""
    half = len(data) // 2
    return data[:half] + flip_bytes(data[half:])


def absurd_number(data: bytes) -> bytes:
    """A size, length or count of 2 or 4 bytes, as large or as negative as it can be."""
    width = int(RNG.choice([2, 4]))
    largest = 2 ** (8 * width) - 1
    at = int(RNG.integers(0, min(len(data), 1500) - 4))
    order = "little" if RNG.random() < 0.5 else "big"
    value = int(RNG.choice([0, largest // 2, largest])).to_bytes(width, order)
    return data[:at] + value + data[at + width :]


def lose_or_repeat(data: bytes) -> bytes:
    """A piece taken out, or put in twice."""
    start, stop = sorted(RNG.integers(0, len(data), 2))
    stop = min(stop, start + 300)
    return data[:start] + data[stop:] if RNG.random() < 0.5 else data[:stop] + data[start:]


def wrong_type(data: bytes) -> bytes:
    """An element of DICOM that says that it is of another type (VR)."""
    types = b"AE AS CS DA DS DT FD FL IS LO OB OW PN SH SL SQ SS UI UL UN US UT".split()
    places = [at for at in range(132, min(len(data), 3000) - 6) if data[at + 4 : at + 6] in types]
    if not places:
        return flip_header(data)
    at = int(RNG.choice(places))
    return data[: at + 4] + types[int(RNG.integers(0, len(types)))] + data[at + 6 :]


DAMAGES: tuple[Damage, ...] = (
    *(cut, flip_bytes, flip_header, flip_pixels),
    *(absurd_number, lose_or_repeat, wrong_type),
)


def dicom(folder: Path, write_ct, _shared) -> None:
    image = RNG.integers(0, 2000, (40, 32)).astype(np.int16)
    write_ct(folder / "native.dcm", image, padding=("SS", -2000))
    for i, syntax in enumerate(SYNTAXES):
        write_ct(folder / f"compressed{i}.dcm", image)
        compress(folder / f"compressed{i}.dcm", syntax)
    write_enhanced(folder / "enhanced.dcm", np.stack([image] * 3), [0, 1, 2])
    write_enhanced(folder / "enhanced_rle.dcm", np.stack([image] * 3), [0, 1, 2], SYNTAXES[0])


def real_dicom(folder: Path, _write_ct, shared) -> None:
    """One image in 16 transfer syntaxes."""
    real = shared("nasty/transfer_syntax/same_ct_16_syntaxes")
    for i, path in enumerate(sorted(real.iterdir())):
        (folder / f"real{i}.dcm").write_bytes(path.read_bytes())


def volumes(folder: Path, _write_ct, _shared) -> None:
    values = RNG.integers(-1024, 1000, (5, 40, 32)).astype(np.int16)
    volume = SimpleITK.GetImageFromArray(values)
    for name in ("a.nii", "a.nii.gz", "a.nrrd", "raw.nrrd", "a.mha", "raw.mha"):
        SimpleITK.WriteImage(volume, folder / name, useCompression=not name.startswith("raw"))


def images(folder: Path, _write_ct, _shared) -> None:
    grey = Image.fromarray(RNG.integers(0, 255, (40, 32)).astype(np.uint8))
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        grey.save(folder / name)


def mutants(folder: Path, sound: dict[str, bytes], count: int) -> list[str]:
    """Writes `count` damaged files, and says what each is."""
    folder.mkdir()
    kinds = []
    names = sorted(sound)
    for number in range(count):
        name = names[number % len(names)]
        damage = DAMAGES[int(RNG.integers(0, len(DAMAGES)))]
        suffix = name.partition(".")[2]
        (folder / f"{number:05}.{suffix}").write_bytes(damage(sound[name]))
        kinds.append(f"{name} {damage.__name__}")
    return kinds


def read_all(folder: Path, count: int) -> tuple[dict[int, str], str]:
    """The outcome of each file, and what was shown; what ends its process is a crash."""
    outcomes: dict[int, str] = {}
    shown = ""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[2])])
    }
    while len(outcomes) < count:
        worker = subprocess.Popen(
            [sys.executable, str(HERE / "fuzz_worker.py"), str(folder), str(len(outcomes))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert worker.stdout is not None
        begun = len(outcomes) - 1
        for line in worker.stdout:
            word, number, *rest = line.rstrip("\n").split(" ", 2)
            if word == "end":
                outcomes[int(number)] = rest[0]
            else:
                begun = int(number)
        _, stderr = worker.communicate()
        if len(outcomes) < count:
            assert begun == len(outcomes), stderr
            outcomes[begun] = f"CRASHED {worker.returncode}"
        shown += stderr
    return outcomes, shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seeds", "count"), [(dicom, 1500), (real_dicom, 700), (volumes, 900), (images, 900)]
)
def test_damaged_files_give_slices_or_reasons(tmp_path, write_ct, shared, seeds, count):
    (tmp_path / "sound").mkdir()
    seeds(tmp_path / "sound", write_ct, shared)
    sound = {path.name: path.read_bytes() for path in (tmp_path / "sound").iterdir()}
    kinds = mutants(tmp_path / "damaged", sound, count)
    outcomes, shown = read_all(tmp_path / "damaged", count)
    tally = Counter(reason for reasons in outcomes.values() for reason in reasons.split("|"))
    print(*(f"{n:6} {what}" for what, n in tally.most_common()), sep="\n")
    bad = {i: text for i, text in outcomes.items() if text.startswith(("CRASHED", "RAISED"))}
    assert {kinds[i]: text for i, text in bad.items()} == {}
    half = {i: text for i, text in outcomes.items() if kinds[i].endswith(" cut")}
    assert {kinds[i]: text for i, text in half.items() if "a slice" in text} == {}
    assert shown == ""
