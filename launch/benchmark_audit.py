"""How well the audit tells copies of a slice from slices of other patients, on your own data.

    python -m launch.benchmark_audit --data=DATASET [--split=train] [--copies=400] [--halvings=5]
        [--seed=0] [--out=FILE.json]

Copies of random slices are edited, and mirrored or turned at random; the table says which share of
each edit is found among all slices of the split. Then the patients are halved at random, several
times: pairs of patients that are found between the halves are a mistake, if each has one name. Each
two patients are apart in half of the halvings. It measures only.
"""

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from ctssl_jax import command
from ctssl_jax.data import open_dataset
from ctssl_jax.dataset.alignment import LIKENESS
from ctssl_jax.dataset.matching import near_pairs
from ctssl_jax.dataset.signatures import Signatures, of_records
from ctssl_jax.files import require_own_file
from data_prep.pipeline.quality import Tile, to_display

TURNS = (
    None,
    Image.Transpose.FLIP_LEFT_RIGHT,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_90,
)
Edit = Callable[[Image.Image, np.random.Generator], Image.Image]


def jpeg(quality: int) -> Edit:
    """Written as JPEG and read again."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(io.BytesIO(buffer.getvalue()))

    return edit


def curve(grey: Callable[[np.ndarray], np.ndarray]) -> Edit:
    """Other grey values."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return Image.fromarray(np.clip(grey(np.asarray(image, float)), 0, 255).astype(np.uint8))

    return edit


def noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """With white noise of 5 grey levels."""
    return curve(lambda x: x + rng.normal(0, 5, x.shape))(image, rng)


def resized(width: float, height: float) -> Edit:
    """Of another size."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        size = (int(image.width * width), int(image.height * height))
        return image.resize(size, Image.Resampling.BICUBIC)

    return edit


def cropped(share: float) -> Edit:
    """Without a share of its rows and columns, cut off at random from the edges."""

    def edit(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        lost = [round(side * share) for side in image.size]
        left, top = (int(rng.integers(0, n + 1)) for n in lost)
        right, bottom = image.width - (lost[0] - left), image.height - (lost[1] - top)
        return image.crop((left, top, right, bottom))

    return edit


EDITS: dict[str, Edit] = {
    "JPEG quality 50": jpeg(50),
    "JPEG quality 20": jpeg(20),
    "brightness +20": curve(lambda x: x + 20),
    "gamma 0.7": curve(lambda x: 255 * (x / 255) ** 0.7),
    "contrast x0.7": curve(lambda x: (x - 128) * 0.7 + 128),
    "contrast x1.4": curve(lambda x: (x - 128) * 1.4 + 128),
    "half the size": resized(0.5, 0.5),
    "other aspect ratio": resized(1.0, 0.8),
    "noise": noise,
    "2 % cut off": cropped(0.02),
    "4 % cut off": cropped(0.04),
    "6 % cut off": cropped(0.06),
}


def describe(images: Sequence[UInt8[np.ndarray, "h w"]], patients: Sequence[bytes]) -> Signatures:
    """Signatures of 8-bit pictures."""
    rows = zip(images, patients, strict=True)
    return of_records(
        (
            {"image": x.astype(np.int16), "patient": p, "series": p, "slice_index": 0, "label": -1}
            for x, p in rows
        ),
        "grey8",
    )


def measure(data: Path, split: str, copies: int, seed: int, halvings: int) -> dict[str, object]:
    """The share of copies found by edit, and what is found between halves of the patients."""
    dataset = open_dataset(data)
    source = dataset.source(split)
    records = [source[row] for row in range(len(source))]
    images = [to_display(Tile(r["image"], dataset.intensity, "")) for r in records]
    patients = [r["patient"] for r in records]
    known = describe(images, patients)
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(images), min(copies, len(images)), replace=False))
    found = {}
    for name, edit in EDITS.items():
        edited = []
        for row in chosen:
            image, turn = Image.fromarray(images[row]), TURNS[rng.integers(len(TURNS))]
            image = edit(image if turn is None else image.transpose(turn), rng)
            edited.append(np.asarray(image.convert("L")))
        pairs = near_pairs(known, describe(edited, [patients[row] for row in chosen]))
        found[name] = len(pairs.right) / len(chosen)
    names = np.unique(patients)
    between = set[tuple[bytes, ...]]()
    for _ in range(halvings if len(names) > 1 else 0):
        half = np.isin(patients, rng.permutation(names)[: len(names) // 2])
        one, other = known.take(np.flatnonzero(half)), known.take(np.flatnonzero(~half))
        pairs = near_pairs(one, other)
        both = zip(
            one.patient[pairs.left].tolist(), other.patient[pairs.right].tolist(), strict=True
        )
        between |= {tuple(sorted(map(bytes, pair))) for pair in both}
    return {
        "slices": len(images),
        "patients": len(names),
        "copies": len(chosen),
        "halvings": halvings,
        "seed": seed,
        "threshold": LIKENESS,
        "found": found,
        "pairs_of_patients": len(between),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = command.Parser(prog="python -m launch.benchmark_audit", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--split", default="train", help="which split")
    parser.add_argument("--copies", type=int, default=400, help="slices that are copied")
    parser.add_argument("--halvings", type=int, default=5, help="of the patients, at random")
    parser.add_argument("--seed", type=int, default=0, help="of slices, edits and halves")
    parser.add_argument("--out", type=Path, help="a JSON file to write")

    def work() -> None:
        args = parser.parse_args(argv)
        if args.out:
            require_own_file(args.out, "--out")
        result = measure(args.data, args.split, args.copies, args.seed, args.halvings)
        found, wrong, people = (result[k] for k in ("found", "pairs_of_patients", "patients"))
        assert isinstance(found, dict)
        assert isinstance(wrong, int)
        assert isinstance(people, int)
        print(f"{result['slices']:,} slices of {result['patients']:,} patients")
        for name, share in found.items():
            print(f"{name:20}{share:8.2f}")
        print(
            f"pairs of different patients, {result['halvings']} halvings: {wrong:,}, "
            f"{100 * wrong / people:.1f} in 100 patients"
        )
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n")

    return command.run("launch.benchmark_audit", work)


if __name__ == "__main__":
    sys.exit(main())
