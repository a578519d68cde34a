"""A fine-tuned network from its run folder: what `config.json` says, and the chosen weights."""

import dataclasses
import enum
from pathlib import Path
from typing import Any, TypeVar

import jax

from ctssl_jax.config import FinetuneConfig
from ctssl_jax.errors import ConfigError, DataError, StorageError
from ctssl_jax.methods import Cases, Supervised
from ctssl_jax.methods.base import PyTree
from ctssl_jax.nn.resnet import ResNet
from ctssl_jax.run import checkpoint
from ctssl_jax.run import folder as run_folder

METHODS = {method.__name__: method for method in (Supervised, Cases)}
Plain = TypeVar("Plain")


@dataclasses.dataclass(frozen=True)
class FineTuned:
    """A run's network.

    Attributes:
      run: its folder.
      record: its config.json.
      data: its data.json.
      config: that it was trained by; the private fields are empty.
      encoder: the network.
      params: chosen on validation, of `encoder` and `head`.
      batch_stats: likewise.
    """

    run: Path
    record: dict[str, Any]
    data: dict[str, Any]
    config: FinetuneConfig
    encoder: ResNet
    params: PyTree
    batch_stats: PyTree

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the outputs."""
        return tuple(self.data["classes"])


def read_fine_tuned(run: Path) -> FineTuned:
    """The network of a finished fine-tuning.

    Raises:
      DataError: there is no run, or it is not finished.
      ConfigError: it is no fine-tuning.
      StorageError: it cannot be read.
    """
    if not (run / "config.json").is_file():
        raise DataError(f"no run at {run}: --run takes the folder of a fine-tuning run")
    record = run_folder.read_config(run)
    if record.get("type") != "FinetuneConfig":
        raise ConfigError(f"{run} is no fine-tuning ({record.get('type')}): it has no classes")
    if run_folder.read_status(run) != run_folder.DONE:
        raise DataError(f"{run} is not finished, its weights are not chosen: repeat its command")
    data = run_folder.read_json(run / "data.json")
    config = finetune_config(record["config"])
    encoder = config.encoder.build(config.precision)
    method = dataclasses.replace(config.method, classes=len(data["classes"]))
    config, channels = dataclasses.replace(config, method=method), config.intensity.channels
    initial = jax.eval_shape(lambda key: method.init(encoder, key, channels), jax.random.key(0))
    params, stats = checkpoint.load_best(run, initial.params, initial.batch_stats)
    return FineTuned(run, record, data, config, encoder, params, stats)


def finetune_config(values: dict[str, Any]) -> FinetuneConfig:
    """The inverse of `to_json`, but for private fields; what is not said is the default.

    Raises:
      StorageError: the values are not those of a fine-tuning of this version or an older one.
    """
    kind = METHODS.get(values.get("method", {}).get("type", ""))
    if kind is None:
        raise StorageError(f"config.json: no method {values.get('method', {}).get('type')!r}")
    try:
        return from_plain(FinetuneConfig(method=kind()), values)
    except (TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"config.json cannot be read ({error}): give another run") from None


def from_plain(default: Plain, values: Any) -> Plain:
    """A value like `default` of plain data: dataclasses, enums and tuples come back."""
    made: Any = values
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        fields = {field.name: field for field in dataclasses.fields(default)}
        made = dataclasses.replace(
            default,
            **{
                name: from_plain(getattr(default, name), value)
                for name, value in values.items()
                if name in fields and not fields[name].metadata.get("private")
            },
        )
    elif isinstance(default, enum.Enum):
        made = type(default)(values)
    elif isinstance(default, tuple):
        made = tuple(values)
    return made
