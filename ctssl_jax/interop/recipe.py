"""How a CT slice becomes the input of exported weights, for a reader without this package."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int16

from ctssl_jax.augment import AIR_HU, Intensity, IntensityKind, IntensityMode, Standardise
from ctssl_jax.augment import views as augment
from ctssl_jax.augment.resample import Interpolation
from ctssl_jax.dataset.windows import GREY_RANGE, Window

SIZE = 224  # pixels; of an encoder that no view tells
VALUES = {
    "hu": "Hounsfield units, after rescale slope and intercept",
    "grey8": "grey, 0 to 255",
    "grey16": "16-bit grey minus 32768",
}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a run's evaluation does with a slice.

    Attributes:
      kind: what the stored values are.
      intensity: how they become network input.
      canvas: pixels, to which a slice is averaged first.
      size: pixels of the input; where it is not `canvas`, by `interpolation`.
      interpolation: of that second resize.
      transpose: rows and columns change places before all else.
    """

    kind: IntensityKind
    intensity: Intensity
    canvas: int = SIZE
    size: int = SIZE
    interpolation: Interpolation = Interpolation.BICUBIC
    transpose: bool = False

    def steps(self) -> list[dict[str, Any]]:
        """The steps in their order, as plain data."""
        intensity = self.intensity
        if intensity.mode is IntensityMode.SLICE_MIN_MAX:
            scale: dict[str, Any] = {"step": "scale", "range": "slice"}
            if self.kind == "hu":
                scale["floor"] = AIR_HU
        else:
            scale = {"step": "scale", "range": list(intensity.bounds(self.kind))}
        steps: list[dict[str, Any]] = [
            *([{"step": "transpose"}] if self.transpose else []),
            {"step": "resize", "size": self.canvas, "filter": "box", "round": True},
            scale,
        ]
        if self.size != self.canvas:
            filter = self.interpolation.value
            steps.append({"step": "resize", "size": self.size, "filter": filter, "clip": [0, 1]})
        mean, std = list(intensity.mean), list(intensity.std)
        steps.append({"step": "normalise", "mean": mean, "std": std})
        return [*steps, {"step": "channels", "count": intensity.channels}]

    def in_words(self) -> list[str]:
        """The same for people, a sentence each."""
        words = []
        for step in self.steps():
            match step["step"]:
                case "transpose":
                    words.append("Let rows and columns change places.")
                case "resize":
                    how = "averaging (box)" if step["filter"] == "box" else step["filter"]
                    after = "; round" if "round" in step else ", antialiased; clip to 0 and 1"
                    size = step["size"]
                    words.append(f"Resize the whole slice to {size} × {size} by {how}{after}.")
                case "scale" if step["range"] == "slice":
                    floor = (
                        f"Raise what is below {step['floor']:g} to that. "
                        if "floor" in step
                        else ""
                    )
                    words.append(f"{floor}Scale the slice's minimum to 0 and its maximum to 1.")
                case "scale":
                    low, high = step["range"]
                    words.append(f"Scale {low:g} to 0 and {high:g} to 1; clip to 0 and 1.")
                case "normalise":
                    mean = ", ".join(f"{value:g}" for value in step["mean"])
                    std = ", ".join(f"{value:g}" for value in step["std"])
                    words.append(f"Subtract the mean {mean}; divide by {std}.")
                case "channels":
                    equal = "one channel" if step["count"] == 1 else f"{step['count']} channels"
                    words.append(f"Feed float32 [n, c, h, w] with {equal} of the same slice.")
        return words

    def to_json(self) -> dict[str, Any]:
        """The content of `input.json`."""
        return {"values": self.kind, "values_are": VALUES[self.kind], "steps": self.steps()}

    def apply(self, slices: Int16[np.ndarray, "n s s"]) -> Float[np.ndarray, "n c h w"]:
        """The network's input as PyTorch lays it out, of slices that have the canvas's size."""
        slices = slices.swapaxes(1, 2) if self.transpose else slices
        image = augment.whole_slices(
            jnp.asarray(slices), self.intensity, self.kind, self.size, self.interpolation
        )
        return np.ascontiguousarray(np.asarray(image, np.float32).transpose(0, 3, 1, 2))

    def example(self, n: int = 2) -> Int16[np.ndarray, "n s s"]:
        """Stored values of no patient: smooth noise over and beyond the range that is used."""
        low, high = GREY_RANGE.get(self.kind, self.intensity.bounds(self.kind))
        coarse = jax.random.uniform(jax.random.key(0), (n, 12, 12))
        smooth = np.asarray(jax.image.resize(coarse, (n, self.canvas, self.canvas), "cubic"))
        values = low + (high - low) * (1.2 * smooth - 0.1)
        limits = GREY_RANGE.get(self.kind, (-32768.0, 32767.0))
        return np.rint(np.clip(values, *limits)).astype(np.int16)


def of_run(record: dict[str, Any], data: dict[str, Any] | None) -> Recipe:
    """The recipe of a run, from its `config.json` and `data.json`.

    Pre-training sees random crops; what is exported of it gets whole slices of a crop's size, as
    in evaluation.
    """
    config = record["config"]
    intensity = read_intensity(config["intensity"])
    kind: IntensityKind = data["intensity"] if data else "hu"
    view = config["method"].get("view", {})
    size = view.get("size", SIZE)
    if record["type"] != "FinetuneConfig":
        return Recipe(kind, intensity, size, size)
    reading = config["data"]
    interpolation, transpose = Interpolation(view["interpolation"]), reading.get("transpose", False)
    return Recipe(kind, intensity, reading["canvas"], size, interpolation, transpose)


def read_intensity(values: dict[str, Any]) -> Intensity:
    """The inverse of `config_record.to_json`; what an older run does not say is the default."""
    enums = {"mode": IntensityMode, "window": Window, "standardise": Standardise}
    plain: dict[str, Any] = {
        name: enums[name](value) if name in enums else tuple(value) if name != "channels" else value
        for name, value in values.items()
    }
    return Intensity(**plain)
