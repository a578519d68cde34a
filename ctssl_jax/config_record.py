"""A config as a run folder keeps it: plain data, and the hash by which two runs are one."""

import dataclasses
import enum
import hashlib
import json
from typing import Any

from ctssl_jax.config import Config, EvaluateConfig


def to_json(config: Any) -> Any:
    """Plain data of a config. Private fields (paths may name patients) show as `<private>`.

    Unrecorded fields, of which `data.json` says what came of them, are left out, and fields that
    were added later while they have their default: runs from before are runs of the same config.
    """
    if dataclasses.is_dataclass(config):
        return {
            field.name: (
                "<private>"
                if field.metadata.get("private") and getattr(config, field.name)
                else to_json(getattr(config, field.name))
            )
            for field in dataclasses.fields(config)
            if not field.metadata.get("unrecorded")
            and not (field.metadata.get("added") and getattr(config, field.name) == field.default)
        }
    if isinstance(config, enum.Enum):
        return config.value
    if isinstance(config, tuple | list):
        return [to_json(item) for item in config]
    return config


def config_record(config: Config) -> dict[str, Any]:
    """What `config.json` holds: type, values, and the hash of those that a run may not change.

    Elastic fields say how a run is computed, not what: a run may be resumed with others, and they
    stand apart, outside the hash.
    """
    values = to_json(config)
    if not isinstance(config, EvaluateConfig):
        values["method"] = {"type": type(config.method).__name__, **values["method"]}
    elastic = _pop_elastic(config, values)
    record = {"type": type(config).__name__, "config": values}
    return {**record, "elastic": elastic, "hash": digest(record)}


def digest(values: Any) -> str:
    """By which a run is named: a hash of plain data."""
    text = json.dumps(values, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def without(values: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Plain values of a config but for some fields, which are named as deep as they lie.

    >>> without({"seed": 0, "data": {"split": "train", "prefetch": 4}}, {"data": {"prefetch": 8}})
    {'seed': 0, 'data': {'split': 'train'}}
    """
    kept = {}
    for name, value in values.items():
        inner = fields.get(name)
        if isinstance(value, dict) and isinstance(inner, dict):
            kept[name] = without(value, inner)
        elif name not in fields:
            kept[name] = value
    return kept


def _pop_elastic(config: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Takes the elastic fields out of a config's plain values."""
    popped = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.metadata.get("elastic"):
            popped[field.name] = values.pop(field.name)
        elif dataclasses.is_dataclass(value) and (inner := _pop_elastic(value, values[field.name])):
            popped[field.name] = inner
    return popped


def first_difference(ours: Any, theirs: Any, name: str = "config") -> str:
    """The first value in which two plain configs differ: `name: theirs there, ours here`."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                return first_difference(ours.get(key), theirs.get(key), f"{name}.{key}")
    return f"{name} is {theirs} there and {ours} here"
