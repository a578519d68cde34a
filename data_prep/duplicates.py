"""Fewer, more different slices for pre-training: `python -m data_prep.duplicates --data=DATASET`.

Neighbouring slices of a volume are much alike. This chooses which to keep, and writes a small file
that a pre-training run takes as --config.data.filter. The dataset itself stays as it is.

    dhash      as Wolf et al., "Less is More" (2024), did it: in each volume the first slice is
               kept and all are dropped whose difference hash is within --threshold bits of its;
               then the same with the first of the rest, and so on
    every_n    every n-th slice of each volume
    embedding  as dhash, dropping what has at least --cosine to the kept one's features, which
               `configs/evaluate.py` writes

Source of the first: Hash_LIDC_Volume.py of Wolfda95/Less_is_More@c3ca90d. There a volume is all
that a patient has, in the order of file names; here it is a series in the order of slices, unless
--volume=patient says otherwise.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, UInt64

from ctssl_jax import command
from ctssl_jax.dataset.manifest import read_manifest
from ctssl_jax.dataset.signatures import Signatures, load_signatures
from ctssl_jax.dataset.splits import parts
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.files import open_ordinary, read_json, require_own_file, whole_file

FORMAT = 1
THRESHOLD, N, COSINE = 6, 10, 0.95  # the first in bits of 64
KEYS = ("format", "method", "parameters", "rows")  # of a filter, among others
# What each method takes, and what it is without a word; `--embeddings` has no usual value.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "dhash": {"threshold": THRESHOLD},
    "every_n": {"n": N},
    "embedding": {"embeddings": None, "cosine": COSINE},
}

Like = Callable[[int, Int[np.ndarray, " m"]], Bool[np.ndarray, " m"]]


def volumes(signatures: Signatures, by: str = "series") -> Iterator[Int64[np.ndarray, " m"]]:
    """The rows of each volume, a "series" or a "patient", in the order of series and slices."""
    owner = getattr(signatures, by)
    order = np.lexsort((signatures.slice_index, signatures.series, owner))
    owner = owner[order]
    yield from np.split(order, np.flatnonzero(owner[1:] != owner[:-1]) + 1)


def keep_greedily(rows: Int64[np.ndarray, " m"], like: Like) -> Int64[np.ndarray, " k"]:
    """Those of a volume's rows that stay: the first, then the first that is like none kept.

    `like(row, others)` says which of the others are dropped for a row that is kept.
    """
    kept = []
    while len(rows):
        kept.append(rows[0])
        rows = rows[1:][~like(int(rows[0]), rows[1:])]
    return np.array(kept, np.int64)


def like_hash(hashes: UInt64[np.ndarray, " n"], threshold: int) -> Like:
    """Within `threshold` of 64 bits."""
    return lambda row, others: np.bitwise_count(hashes[others] ^ hashes[row]) <= threshold


def like_features(features: Float[np.ndarray, "n d"], cosine: float) -> Like:
    """At least at that cosine; a vector of zeros is like nothing."""
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.where(norms > 0, norms, 1)
    return lambda row, others: unit[others] @ unit[row] >= cosine


def load_features(
    path: Path, split: str, slices: int, fingerprint: str
) -> Float32[np.ndarray, "n d"]:
    """The features of a split by row, from the embeddings.npz of an evaluation.

    Raises:
        DataError: If the file cannot be read, or is not of all slices of this dataset's split.
    """
    again = f"evaluate the encoder on this dataset, with --config.data.split={split}"
    try:
        with open_ordinary(path) as stream, np.load(stream, allow_pickle=False) as arrays:
            features, record = arrays[f"{split}_features"], arrays[f"{split}_record"]
        of = read_json(path.parent / "results.json")["data_fingerprint"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise DataError(f"--embeddings: no features of split {split!r} there; {again}") from error
    if of != fingerprint:
        raise DataError(f"--embeddings: they are of another dataset; {again}")
    if not np.array_equal(np.sort(record), np.arange(slices)):
        raise DataError(
            f"--embeddings: {len(record):,} features for {slices:,} slices of split {split!r}; "
            f"{again} and fraction 1"
        )
    return features[np.argsort(record)]


def choose(
    signatures: Signatures, by: str, like: Like | None, n: int = 1
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, "v 2"]]:
    """The rows kept, ascending, and of each volume how many slices there are and how many kept.

    Without `like` every n-th is kept.
    """
    kept, counts = [], []
    for rows in volumes(signatures, by):
        kept.append(rows[::n] if like is None else keep_greedily(rows, like))
        counts.append((len(rows), len(kept[-1])))
    return np.sort(np.concatenate(kept)), np.array(counts)


def write_filter(args: argparse.Namespace) -> dict[str, Any]:
    """Chooses by the command's flags and writes the filter; returns its content."""
    manifest = read_manifest(args.data)
    for part in parts(args.split):
        if not manifest["splits"].get(part, {}).get("slices"):
            raise DataError(f"--data has no split {part!r}, or it is empty")
    require_own_file(args.out, "--out", *KEYS)
    signatures = load_signatures(args.data, args.split)
    like: Like | None = None
    parameters: dict[str, Any] = {"volume": args.volume}
    if args.method == "dhash":
        like = like_hash(signatures.dhash, args.threshold)
        parameters["threshold"] = args.threshold
    elif args.method == "embedding":
        if args.embeddings is None:
            raise ConfigError("--method=embedding needs --embeddings=RUN/embeddings.npz")
        fingerprint = manifest["fingerprint"]
        features = load_features(args.embeddings, args.split, len(signatures), fingerprint)
        like = like_features(features, args.cosine)
        parameters["cosine"] = args.cosine
    else:
        parameters["n"] = args.n
    rows, counts = choose(signatures, args.volume, like, parameters.get("n", 1))
    content = {
        "format": FORMAT,
        "method": args.method,
        "parameters": parameters,
        "dataset": manifest["name"],
        "fingerprint": manifest["fingerprint"],
        "split": args.split,
        "slices": len(signatures),
        "kept": len(rows),
        "volumes": len(counts),
        "slices_per_volume": _summary(counts[:, 0]),
        "kept_per_volume": _summary(counts[:, 1]),
        "rows": rows.tolist(),
    }
    try:
        with whole_file(args.out) as temporary:
            temporary.write_text(json.dumps(content) + "\n")
    except OSError as error:
        raise StorageError(f"--out {args.out} cannot be written: {error.strerror}") from None
    return content


def table(content: dict[str, Any]) -> str:
    """What a filter keeps, as text."""
    settings = ", ".join(f"{name} {value}" for name, value in content["parameters"].items())
    lines = [
        f"{content['method']} ({settings}) on split {content['split']} of {content['dataset']}",
        f"{'':20}{'all':>10}{'kept':>10}",
        f"{'slices':20}{content['slices']:>10,}{content['kept']:>10,}"
        f"  ({content['kept'] / content['slices']:.1%})",
    ]
    for name, of in content["slices_per_volume"].items():
        kept = content["kept_per_volume"][name]
        lines.append(f"{f'{name} per volume':20}{of:>10,g}{kept:>10,g}")
    return "\n".join([*lines, f"volumes: {content['volumes']:,}"])


def _summary(counts: Int64[np.ndarray, " v"]) -> dict[str, int | float]:
    return {
        "least": int(counts.min()),
        "median": float(np.median(counts)),
        "most": int(counts.max()),
    }


def _settle(args: argparse.Namespace) -> None:
    """Gives the method's settings their usual values where nothing is asked for.

    Raises:
        ConfigError: If one is of another method, or out of range.
    """
    for method, settings in SETTINGS.items():
        for name in settings.keys() & vars(args).keys():
            if method != args.method:
                raise ConfigError(
                    f"--{name} is of --method={method}: no effect with --method={args.method}: "
                    "leave it out"
                )
    vars(args).update({**SETTINGS[args.method], **vars(args)})
    for name, low, high in (("threshold", 0, 64), ("n", 1, np.inf), ("cosine", -1, 1)):
        value = getattr(args, name, low)
        if not low <= value <= high:
            raise ConfigError(f"--{name}={value}: must be {low} to {high}")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes one filter; returns the exit code."""
    parser = command.Parser(
        prog="python -m data_prep.duplicates",
        description="Chooses slices for pre-training that are less alike.",
        epilog="example: python -m data_prep.duplicates --data=data/scans --out=dhash6.json",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--split", default="train", help="which split to thin")
    parser.add_argument("--method", choices=("dhash", "every_n", "embedding"), default="dhash")
    parser.add_argument("--volume", choices=("series", "patient"), default="series")
    # Without defaults, so that what is asked for can be told from what is not.
    of_method: dict[str, tuple[Callable[[str], Any], str]] = {
        "threshold": (int, f"dhash: bits that may differ, of 64 (default: {THRESHOLD})"),
        "n": (int, f"every_n: one slice of so many is kept (default: {N})"),
        "embeddings": (Path, "embedding: RUN/embeddings.npz"),
        "cosine": (float, f"embedding: least of a copy (default: {COSINE})"),
    }
    for name, (kind, text) in of_method.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help=text)
    parser.add_argument("--out", type=Path, required=True, help="the filter to write, JSON")

    def work() -> None:
        args = parser.parse_args(argv)
        _settle(args)
        print(table(write_filter(args)))

    return command.run("data_prep.duplicates", work)


if __name__ == "__main__":
    sys.exit(main())
