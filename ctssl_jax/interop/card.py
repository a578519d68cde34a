"""The model card of exported weights (after Mitchell et al., FAT* 2019): data, method, limits."""

from typing import Any

import numpy as np

from ctssl_jax.dataset.cases import SLICE, plural
from ctssl_jax.interop.weights import Weights
from ctssl_jax.run import folder as run_folder
from ctssl_jax.scores import read_predictions
from ctssl_jax.statistics import accuracy, auc, bootstrap_interval, widened

LOADING = {
    "torchvision": """import torchvision
from safetensors.torch import load_file

model = torchvision.models.resnet{depth}({classes})
{headless}model.load_state_dict(load_file("{file}"), strict=True)
model.eval()""",
    "timm": """import timm
from safetensors.torch import load_file

model = timm.create_model("resnet{depth}", num_classes={classes}, in_chans={channels})
model.load_state_dict(load_file("{file}"), strict=True)
model.eval()""",
}
NO_LICENCE = (
    "Of the weights: not stated. Who may use them depends on the terms of the data they were made "
    "from; ask whoever gave them to you."
)
LIMITS = """- **Not a medical device.** For research: not to diagnose, screen, triage or treat.
- Made of single axial slices: what lies above and below is not seen.
- Nothing is known of scanners, protocols, body parts, contrast phases, ages or conditions that the
  data below do not hold; children, metal and motion among them. Test on your own data first.
- Output depends on the input being prepared exactly as below: another window, mean or size gives
  numbers that look right and are not."""


def write(weights: Weights, layout: str, files: list[str], licence: str) -> str:
    """The card, as Markdown.

    Args:
      weights: what is exported.
      layout: for whose network.
      files: names of the files of weights; the second is for three channels.
      licence: of the weights; empty says that it is not known.
    """
    channels = weights.recipe.intensity.channels
    kind = "classifier" if weights.classes else "encoder"
    sections = {
        f"# ResNet-{weights.depth} {kind} for CT slices": _summary(weights),
        "## Intended use and limits": LIMITS,
        "## Loading": _loading(weights, layout, files, channels),
        "## Input": "\n".join(
            f"{number}. {words}" for number, words in enumerate(weights.recipe.in_words(), 1)
        )
        + "\n\nThe same for programs: `input.json`. Slices and the inputs they become: "
        "`parity.npz`.",
        "## Data": _data(weights.data),
        "## Method": _method(weights),
        "## Results": _results(weights),
        "## Licence": f"Of the weights: {licence}." if licence else NO_LICENCE,
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items()) + "\n"


def _summary(weights: Weights) -> str:
    method = weights.record["config"]["method"]["type"]
    if weights.classes:
        numbered = ", ".join(f"{i} = {name}" for i, name in enumerate(weights.classes))
        return f"Fine-tuned to tell apart {len(weights.classes)} classes: {numbered}."
    how = f"imported ({method})" if weights.data is None else f"pre-trained by {method}, unlabelled"
    return f"Features of CT slices, {how}: the global average of the last stage's map."


def _loading(weights: Weights, layout: str, files: list[str], channels: int) -> str:
    """PyTorch to load each file; torchvision's networks take three channels."""
    three = channels == 1 and layout == "torchvision"
    classes = str(len(weights.classes))
    if layout == "torchvision":
        classes = f"num_classes={classes}" if weights.classes else ""
    code = LOADING[layout].format(
        depth=weights.depth,
        classes=classes,
        channels=3 if three else channels,
        headless="" if weights.classes else "model.fc = torch.nn.Identity()\n",
        file=files[1] if three else files[0],
    )
    if layout == "torchvision" and not weights.classes:
        code = "import torch\n" + code
    text = f"```python\n{code}\n```"
    if channels == 1:
        text += (
            f"\n\n`{files[0]}` takes one channel; `{files[1]}` takes three equal ones and gives "
            "the same, to rounding."
        )
    return text + (
        "\n\n`parity.npz` holds inputs and the outputs to expect of them; "
        "`sha256sum -c SHA256SUMS` checks the files."
    )


def _data(data: dict[str, Any] | None) -> str:
    if data is None:
        return "Not known: the weights were imported."
    values = {"hu": "Hounsfield units"}.get(data["intensity"], "grey values")
    lines = [f"{data['name']} ({values}; fingerprint {data['fingerprint'][:16]}):", ""]
    for name, split in data["splits"].items():
        lines.append(f"- {name}: {split['slices']:,} slices of {split['patients']:,} patients")
    verdict = (data.get("audit") or {}).get("verdict", "unknown")
    lines += ["", f"Audit for leaks between the splits: {verdict}."]
    if data.get("filter"):
        lines.append("Not all of the training split was used: `data.json` of the run says what.")
    return "\n".join(lines)


def _method(weights: Weights) -> str:
    config, run = weights.record["config"], weights.run
    known = run / "env.json"
    env = run_folder.read_json(known) if known.exists() else {}
    rows = {
        "method": config["method"]["type"],
        "config hash": weights.record["hash"],
        "seed": config.get("seed"),
        "epochs": config.get("epochs"),
        "batch": config.get("batch_size"),
        "learning rate": config.get("optim", {}).get("lr"),
        "weights of step": weights.step or None,
        "status of the run": run_folder.read_status(run),
        "code": env.get("commit"),
        "exported by code": run_folder.code_commit(),
        "made with": f"jax {env['jax']}, {env['precision']}, {env['device']}" if env else None,
        "encoder of run": _encoder_hash(weights),
        "SHA-256 of the source": config.get("source_sha256"),
    }
    return "\n".join(f"- {name}: {value}" for name, value in rows.items() if value is not None)


def _encoder_hash(weights: Weights) -> str | None:
    """Of the run whose encoder this one started from."""
    if weights.classes:
        return run_folder.read_json(weights.run / "results.json")["encoder_run"]
    return (weights.data or {}).get("encoder_run")


def _results(weights: Weights) -> str:
    if not weights.classes:
        return "None here: what an encoder is worth shows when it is fine-tuned."
    results = run_folder.read_results(weights.run)
    split = weights.record["config"]["test_split"]
    labels, patients, scores = read_predictions(weights.run / "predictions.csv", split)
    test, parts = results["test"], []
    for name, metric in {"auc": auc, "accuracy": accuracy}.items():
        found = bootstrap_interval(np.asarray(labels), scores, patients, metric)
        found = widened(found, name, np.asarray(labels), patients)
        word = name.upper() if name == "auc" else name
        parts.append(f"{word} {found.estimate:.3f} ({found.low:.3f} to {found.high:.3f})")
    seen = results["pretraining_overlap"]
    word = results.get("case", SLICE)
    trained = results.get("train_cases", results["train_slices"])
    overlap = sum(n for n in seen.values() if n is not True) if isinstance(seen, dict) else seen
    return (
        f"Test split `{split}`, {test['n']:,} {plural(word)} of {test['patients']:,} patients: "
        f"{', '.join(parts)}; 95 % intervals by bootstrap over patients, of this one run. "
        f"Trained on {trained:,} {plural(word)} of {results['train_patients']:,} patients "
        f"from {results['arm']}; epoch {results['best_epoch']}, chosen on validation. Slices or "
        f"patients of validation and test that the pre-training had seen: {overlap or 'none'}."
    )
