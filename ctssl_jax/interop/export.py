"""A run's weights for PyTorch: a folder with all that is needed to use and to check them.

FILE.safetensors        weights under the names of torchvision's and timm's ResNets
FILE_3ch.safetensors    of a one-channel network: the same for three equal channels
input.json              how a slice becomes the input
parity.npz              slices of no patient, the inputs they become, the outputs expected
model_card.md           what the weights are, and are not for
config.json, model.safetensors, README.md    for timm and model hubs: see `timm_folder`
case_head.safetensors, case_head.py, parity_case.npz    of a run of cases: see `case_head`
SHA256SUMS              of all these, for `sha256sum -c`
"""

import enum
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save

from ctssl_jax.errors import ConfigError, StorageError
from ctssl_jax.files import sha256, write_json
from ctssl_jax.interop import card, case_head, timm_folder
from ctssl_jax.interop.names import classifier_name, counters, to_torch
from ctssl_jax.interop.weights import Weights, read
from ctssl_jax.methods import Cases

METADATA = "ctssl_jax"
"""The one entry of a file's metadata. Safetensors writes several in any order, which would make
other bytes, and another checksum, each time."""
ODD = (97, 131)  # pixels: an input on which other padding than ours shows


class Layout(enum.Enum):
    """Whose network is to load the file. Both name the parameters of a ResNet alike."""

    TORCHVISION = "torchvision"
    TIMM = "timm"


class Exported(NamedTuple):
    """What was written.

    Attributes:
      files: in the folder, by their SHA-256.
      tensors: in the file of weights.
    """

    files: dict[str, str]
    tensors: int


def export(run: Path, layout: Layout, out: Path, licence: str = "") -> Exported:
    """Writes the folder of `out`, whole or not at all.

    Args:
      run: a pre-training or fine-tuning run, or an imported encoder.
      layout: whose names.
      out: the file of weights; the others lie beside it.
      licence: of the weights, for the card.

    Raises:
      ConfigError: `out` is no `.safetensors` file, has the name of another file of the export, or
        is in a dataset folder, or something of that folder is there already.
      DataError, StorageError: the run or its weights cannot be read, or the folder not written.
    """
    if out.suffix != ".safetensors":
        raise ConfigError(f"--out={out}: give a file that ends in .safetensors")
    if (out.parent / "manifest.json").exists():
        raise ConfigError(f"--out={out}: is in a dataset folder: give each export its folder")
    weights = read(run)
    if isinstance(weights.method, Cases) and out.name == case_head.WEIGHTS:
        raise ConfigError(f"--out={out}: is the file of the head of cases: give another name")
    try:
        return _write(weights, layout, out, licence)
    except OSError as error:
        raise StorageError(f"{out.parent} cannot be written: {error.strerror}") from None


def _write(weights: Weights, layout: Layout, out: Path, licence: str) -> Exported:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
        folder = Path(temporary)
        tensors = named_tensors(weights)
        files = {out.name: tensors}
        if weights.recipe.intensity.channels == 1:
            files[f"{out.stem}_3ch{out.suffix}"] = for_three_channels(tensors)
        metadata = {METADATA: json.dumps(_metadata(weights))}
        for name, content in files.items():
            # Not `save_file`, whose files only their owner may read.
            (folder / name).write_bytes(save(content, metadata))
        write_json(folder / "input.json", weights.recipe.to_json())
        with (folder / "parity.npz").open("wb") as parity:
            np.savez_compressed(parity, **parity_arrays(weights))  # type: ignore[arg-type]
        text = card.write(weights, layout.value, list(files), licence)
        (folder / "model_card.md").write_text(text)
        names = [*files, "input.json", "parity.npz", "model_card.md"]
        names += _write_for_timm(folder, weights, save(tensors, metadata), text, licence)
        if isinstance(weights.method, Cases):
            names += _write_case_head(folder, weights)
        names = list(dict.fromkeys(names))
        sums = {name: sha256(folder / name) for name in names}
        lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
        (folder / "SHA256SUMS").write_text("".join(lines))
        names.append("SHA256SUMS")  # the last: where it is, all is
        for name in names:
            if (out.parent / name).exists():
                raise ConfigError(f"{out.parent} has a file {name}: give each export its folder")
        for name in names:
            (folder / name).rename(out.parent / name)
    return Exported(sums, len(tensors))


def _write_for_timm(
    folder: Path, weights: Weights, model: bytes, text: str, licence: str
) -> list[str]:
    """What `timm.create_model("local-dir:...")` and model hubs look for; the names of the files."""
    (folder / timm_folder.MODEL).write_bytes(model)
    (folder / timm_folder.CONFIG).write_text(timm_folder.config(weights))
    (folder / timm_folder.README).write_text(timm_folder.readme(weights, text, licence))
    return [timm_folder.MODEL, timm_folder.CONFIG, timm_folder.README]


def _write_case_head(folder: Path, weights: Weights) -> list[str]:
    """The head of a run of cases; the names of the files."""
    (folder / case_head.WEIGHTS).write_bytes(save(case_head.tensors(weights)))
    (folder / case_head.CODE).write_text(case_head.code(weights))
    with (folder / case_head.PARITY).open("wb") as parity:
        np.savez_compressed(parity, **case_head.parity(weights))  # type: ignore[arg-type]
    return [case_head.WEIGHTS, case_head.CODE, case_head.PARITY]


def named_tensors(weights: Weights) -> dict[str, np.ndarray]:
    """All that `load_state_dict(strict=True)` asks for, in float32 and the order of the network."""
    tensors: dict[str, np.ndarray] = {}
    params = weights.params
    if isinstance(weights.method, Cases):  # of whose head the classifier is that of a slice
        params = {**params, "head": params["head"]["classifier"]}
    for tree in (params, weights.batch_stats):
        named = to_torch(tree, classifier_name)
        tensors |= {name: value.astype(np.float32) for name, value in named.items()}
    # PyTorch counts batches and, at these settings, never looks at the count.
    return tensors | {name: np.zeros((), np.int64) for name in counters(tensors)}


def for_three_channels(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same network for three equal channels: each third of the stem sees one of them."""
    stem = np.repeat(tensors["conv1.weight"] / 3, 3, axis=1)
    return tensors | {"conv1.weight": stem}


def parity_arrays(weights: Weights) -> dict[str, np.ndarray]:
    """Examples of the whole way: stored values, input, output; and one input of an odd size."""
    slices = weights.recipe.example()
    image = weights.recipe.apply(slices)
    odd = np.random.default_rng(0).standard_normal((1, image.shape[1], *ODD), np.float32)
    output = "logits" if weights.classes else "features"
    return {
        "slices": slices,
        "input": image,
        output: weights.outputs(image),
        "input_odd": odd,
        f"{output}_odd": weights.outputs(odd),
    }


def _metadata(weights: Weights) -> dict[str, Any]:
    """What an import of the file takes from it."""
    config = weights.record["config"]
    return {
        "run": weights.record["hash"],
        "method": config["method"]["type"],
        "intensity": config["intensity"],
        "classes": list(weights.classes),
    }
