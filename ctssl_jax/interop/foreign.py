"""Encoders that others trained, as run folders that fine-tuning and evaluation start from.

A file must hold exactly what its layout says: what is missing, over or of another shape is listed
and refused. The folder has `config.json` and a checkpoint of the encoder. It does not know what
the encoder has seen, and every result made from it says so.

Sources of the layouts: Wolfda95/SSL-MedicalImagining-CL-MAE@87a1627 README and notebooks
("Load Model"); keyu-tian/SparK@a63e386 `spark.py`, `utils/misc.py`; torchvision 0.28 and timm 1.0
`resnet.py`, which name the parameters of ResNet-18/34/50 alike.
"""

import dataclasses
import json
import re
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from ctssl_jax.augment import Intensity, IntensityMode, ViewGroup
from ctssl_jax.config_record import digest, to_json
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.files import open_ordinary, sha256, write_text
from ctssl_jax.interop.export import METADATA
from ctssl_jax.interop.names import (
    COUNTER,
    SPARK_ENCODER_PREFIX,
    counters,
    from_torch,
    spark_name,
    torch_shapes,
)
from ctssl_jax.interop.recipe import read_intensity
from ctssl_jax.methods import SparK
from ctssl_jax.methods.base import PyTree, Start, abstract_encoder
from ctssl_jax.nn.resnet import STRIDE, ResNet
from ctssl_jax.run import checkpoint
from ctssl_jax.run import folder as run_folder

KIND = "ImportedEncoder"
DTYPES = ("F16", "F32")
SHOWN = 5  # names of each kind in a refusal; the rest are counted

# Three channels of grey at ImageNet's statistics, and the statistics of the paper's contrastive
# methods; slices are scaled one by one (recipe of the released code).
_IMAGENET = Intensity(
    mode=IntensityMode.SLICE_MIN_MAX,
    channels=3,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
_CONTRASTIVE = Intensity(
    mode=IntensityMode.SLICE_MIN_MAX, channels=3, mean=(0.1806,), std=(0.1907,)
)


class Layout(NamedTuple):
    """How a kind of file names an encoder.

    Attributes:
      prefix: before torchvision's names.
      beside: regular expressions of what else such a file may hold, by whole names.
      intensity: input that the encoder was trained on.
      decoder: whether the rest of SparK is there too.
    """

    prefix: str = ""
    beside: tuple[str, ...] = ()
    intensity: Intensity = _IMAGENET
    decoder: bool = False


LAYOUTS = {
    "torchvision": Layout("", (r"fc\.(weight|bias)",)),
    "timm": Layout("", (r"fc\.(weight|bias)",)),
    "spark": Layout(),  # or `WHOLE_SPARK`, whose names tell
    "swav": Layout("model.", (r"model\.(projection_head|prototypes)\..*",), _CONTRASTIVE),
    "moco": Layout(
        "encoder_q.", (r"encoder_q\.fc\..*", r"encoder_k\..*", r"(val_)?queue(_ptr)?"), _CONTRASTIVE
    ),
    "byol": Layout(
        "online_network.encoder.",
        (r"online_network\.(projector|predictor)\..*", r"target_network\..*"),
        _CONTRASTIVE,
    ),
}
WHOLE_SPARK = Layout(SPARK_ENCODER_PREFIX, ("imn_[ms]", "norm_black"), decoder=True)


class Tensors(NamedTuple):
    """The content of a safetensors file; `intensity` where it is an export of ours."""

    arrays: dict[str, np.ndarray]
    intensity: Intensity | None


class Imported(NamedTuple):
    """An encoder that fits.

    Attributes:
      depth, channels: of the ResNet.
      start: the encoder, and of a whole SparK its head.
      left: how many other tensors the file has.
    """

    depth: int
    channels: int
    start: Start
    left: int


def import_encoder(source: Path, layout: str, out: Path, name: str = "") -> Imported:
    """Makes the folder `out` of the encoder in `source`, whole or not at all.

    Args:
      source: a safetensors file.
      layout: one of `LAYOUTS`.
      out: a folder that does not exist yet.
      name: of the arm in results and reports; empty: `imported-` and the layout.

    Raises:
      ConfigError: `out` exists, or the name will not do.
      DataError: the file is no safetensors file, or not of that layout.
      StorageError: the folder cannot be written.
    """
    name = name or f"imported-{layout}"
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,39}", name):
        raise ConfigError(f"--name={name}: use up to 40 of a-z, 0-9, _, . and -")
    if out.exists():
        raise ConfigError(f"--out={out} exists: give a new folder")
    tensors = read_tensors(source)
    found = match(tensors.arrays, layout, source)
    intensity = _input(tensors, layout, found.channels, source)
    config = {
        "method": {"type": name},
        "layout": layout,
        "source_sha256": sha256(source),
        "encoder": {"depth": found.depth},
        "intensity": to_json(intensity),
    }
    record = {"type": KIND, "config": config, "elastic": {}, "hash": digest(config)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=".import-") as temporary:
            folder = Path(temporary) / "run"
            folder.mkdir()
            run_folder.write_json(folder / "config.json", record)
            checkpoint.save_start(folder, found.start, SparK.__name__)
            write_text(folder / run_folder.STATUS, "done\n")
            folder.rename(out)
    except OSError as error:
        raise StorageError(f"{out} cannot be written: {error.strerror}") from None
    return found


def read_tensors(source: Path) -> Tensors:
    """All of a safetensors file. Nothing in such a file can be executed.

    Raises:
      DataError: it is no whole safetensors file, or of a type other than float16 or float32.
    """
    try:
        with open_ordinary(source) as file:
            start = file.read(2)
        if start in (b"PK", b"\x80\x02"):
            raise DataError(
                f"{source} is a checkpoint of PyTorch: make it a safetensors file first, with "
                "`python -m ctssl_jax.interop convert`"
            )
        with safe_open(source, framework="np") as file:
            types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
            for name, dtype in types.items():
                if dtype not in DTYPES and not name.endswith(COUNTER):
                    raise DataError(f"{source}: {name} is {dtype}: give weights in F32 or F16")
            arrays = {name: file.get_tensor(name) for name in types}
            intensity = _own_intensity(file.metadata() or {}, source)
    except FileNotFoundError:
        raise DataError(f"no file {source}") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{source} is no whole safetensors file ({error}): get it again") from None
    return Tensors(arrays, intensity)


def _own_intensity(metadata: Mapping[str, str], source: Path) -> Intensity | None:
    """What an export of ours says of its input."""
    if METADATA not in metadata:
        return None
    try:
        intensity = read_intensity(json.loads(metadata[METADATA])["intensity"])
        intensity.validate()
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{source}: its metadata are not as exported: export it again") from error
    return intensity


def _input(tensors: Tensors, layout: str, channels: int, source: Path) -> Intensity:
    """What the network of a file takes: as its metadata say, or as of its layout is usual.

    One channel of grey has the mean of the statistics of three.

    Raises:
      DataError: the metadata are of other channels than the network.
    """
    if tensors.intensity is None:
        usual = LAYOUTS[layout].intensity
        if channels == 1:
            mean, std = ((round(float(np.mean(of)), 6),) for of in (usual.mean, usual.std))
            usual = dataclasses.replace(usual, mean=mean, std=std)
        return dataclasses.replace(usual, channels=channels)
    found = dataclasses.replace(tensors.intensity, channels=channels)
    try:
        found.validate()
    except ConfigError as error:
        raise DataError(
            f"{source}: its metadata are of {tensors.intensity.channels} channels, its first layer "
            f"of {channels} ({error}): export it again"
        ) from None
    return found


def match(arrays: Mapping[str, np.ndarray], layout: str, source: Path) -> Imported:
    """The encoder of a file, if file and layout agree to the last name and shape.

    Raises:
      DataError: they do not; says where, or that a number is not finite.
    """
    kind = LAYOUTS[layout]
    if layout == "spark" and any(name.startswith(SPARK_ENCODER_PREFIX) for name in arrays):
        kind = WHOLE_SPARK
    left = {name for name in arrays if any(re.fullmatch(each, name) for each in kind.beside)}
    shapes = {name: array.shape for name, array in arrays.items() if name not in left}
    depth, channels = _depth(kind, shapes), _channels(kind, shapes)
    params, stats = _abstract(kind, depth, channels, shapes)
    name = partial(spark_name, prefix=kind.prefix)
    wanted = torch_shapes(params, name) | torch_shapes(stats, name)
    counted = dict.fromkeys(counters(wanted), ())
    if differences := _differences(wanted, shapes, counted):
        others = [other for other in LAYOUTS if LAYOUTS[other].prefix not in ("", kind.prefix)]
        fits = [other for other in others if f"{LAYOUTS[other].prefix}conv1.weight" in arrays]
        hint = f"; its names are those of --layout={fits[0]}" if fits else ""
        raise DataError(f"{source} is no ResNet-{depth} of layout {layout}: {differences}{hint}")
    for each in wanted:
        if not np.isfinite(arrays[each]).all():
            raise DataError(f"{source}: {each} holds numbers that are not finite: get another file")
        if each.endswith("running_var") and (arrays[each] < 0).any():
            raise DataError(f"{source}: {each} holds a negative variance: get another file")
    exact = {each: arrays[each].astype(np.float32) for each in wanted}
    start = Start(from_torch(exact, params, name), from_torch(exact, stats, name))
    return Imported(depth, channels, start, len(left))


def _depth(kind: Layout, names: Mapping[str, Any]) -> int:
    """What the names of the first stage say; the comparison of all of them follows."""
    if f"{kind.prefix}layer1.0.conv3.weight" in names:
        return 50
    return 34 if f"{kind.prefix}layer1.2.conv1.weight" in names else 18


def _channels(kind: Layout, shapes: Mapping[str, tuple[int, ...]]) -> int:
    stem = shapes.get(f"{kind.prefix}conv1.weight", ())
    return 1 if stem[1:2] == (1,) else 3


def _abstract(
    kind: Layout, depth: int, channels: int, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, PyTree], dict[str, PyTree]]:
    """`params` and `batch_stats` of what the file should hold, as shapes."""
    encoder = ResNet(depth=depth)
    if kind.decoder:
        width = shapes.get("densify_projs.0.weight", (768,))[0]
        spark = SparK(decoder_width=width, view=ViewGroup(size=2 * STRIDE))
        initial = jax.eval_shape(lambda key: spark.init(encoder, key, channels), jax.random.key(0))
        return initial.params, initial.batch_stats
    params, stats = abstract_encoder(encoder, channels)
    return {"encoder": params}, {"encoder": stats}


def _differences(
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    optional: Mapping[str, tuple[int, ...]],
) -> str:
    """What is missing, over or of another shape; nothing where all agrees."""
    allowed = {**optional, **wanted}
    lists = {
        "missing": [name for name in wanted if name not in found],
        "not known": [name for name in found if name not in allowed],
        "of another shape": [
            f"{name} {found[name]}, not {shape}"
            for name, shape in allowed.items()
            if found.get(name, shape) != shape
        ],
    }
    parts = []
    for what, names in lists.items():
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            parts.append(f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})")
    return ", ".join(parts)
