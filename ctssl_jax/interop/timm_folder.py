"""What makes a folder of weights one that `timm.create_model("local-dir:FOLDER")` opens.

config.json          architecture and input, as timm reads them
model.safetensors    the weights once more, by the name that timm looks for first
README.md            the model card with the front matter that model hubs read
"""

import json
from typing import Any

from ctssl_jax.interop.weights import Weights
from ctssl_jax.nn.resnet import ResNet

CONFIG, MODEL, README = "config.json", "model.safetensors", "README.md"


def config(weights: Weights) -> str:
    """The content of `config.json` (timm 1.0's schema)."""
    intensity, size = weights.recipe.intensity, weights.recipe.size
    channels, classes = intensity.channels, len(weights.classes)

    def each(values: tuple[float, ...]) -> list[float]:
        return list(values) * channels if len(values) == 1 else list(values)

    pretrained: dict[str, Any] = {
        "input_size": [channels, size, size],
        "pool_size": [7, 7],
        "crop_pct": 1.0,
        "interpolation": weights.recipe.interpolation.value,
        "mean": each(intensity.mean),
        "std": each(intensity.std),
        "first_conv": "conv1",
        "classifier": "fc",
        "num_classes": classes,
    }
    content: dict[str, Any] = {
        "architecture": f"resnet{weights.depth}",
        "num_classes": classes,
        "num_features": ResNet(depth=weights.depth).widths[-1],
        "model_args": {"in_chans": channels},
        "pretrained_cfg": pretrained,
    }
    if classes:
        content["label_names"] = list(weights.classes)
    return json.dumps(content, indent=1) + "\n"


def readme(weights: Weights, card: str, licence: str) -> str:
    """The model card with front matter; the licence is "unknown" where nobody says it."""
    task = "image-classification" if weights.classes else "image-feature-extraction"
    lines = [
        "---",
        "library_name: timm",
        f"pipeline_tag: {task}",
        "tags:",
        *(f"- {tag}" for tag in ("timm", "safetensors", "medical-imaging", "computed-tomography")),
        f"license: {json.dumps(licence or 'unknown')}",
        "---",
        "",
    ]
    return "\n".join(lines) + "\n" + card
