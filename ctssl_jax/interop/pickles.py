"""Checkpoints of PyTorch to safetensors, without executing what they hold.

A `.pth` or `.ckpt` is a pickle, which may name any code. This reads with `torch.load` restricted to
weights (`weights_only=True`), refuses whatever is no plain tensor, and writes what it found under
the names that it had, for `foreign` to read. It is a command of its own, in a process that has
nothing to lose, and the only place that needs PyTorch.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ctssl_jax.errors import ConfigError, DataError, StorageError

TORCH = (2, 10)  # older ones have holes in their restricted reader, CVE-2025-32434 among them
CONTAINERS = ("state_dict", "module", "model")  # Lightning; SparK; many others
GIB = 1 << 30


class Converted(NamedTuple):
    """What was written, and what of the same container is no tensor."""

    tensors: int
    left: list[str]


def convert(source: Path, out: Path, limit_gib: float | int = 4) -> Converted:
    """Writes the tensors of a checkpoint as a safetensors file, whole or not at all.

    bfloat16 and float16 become float32, exactly.

    Args:
      source: a file of `torch.save`.
      out: the file to write; must not exist.
      limit_gib: of the file, and of all tensors together.

    Raises:
      ConfigError: there is no PyTorch, or `out` will not do.
      DataError: the file is too large, cut off, holds more than weights, or none.
      StorageError: `out` cannot be written.
    """
    if out.suffix != ".safetensors" or out.exists():
        raise ConfigError(f"--out={out}: give a new file that ends in .safetensors")
    torch = _import_torch()
    limit = int(limit_gib * GIB)
    _require_size(source, limit)
    found = _container(_load(torch, source), source, torch)
    tensors = {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    _require_plain(torch, tensors, source, limit)
    half = (torch.float16, torch.bfloat16)
    content = {
        name: (value.float() if value.dtype in half else value).detach().contiguous().clone()
        for name, value in tensors.items()
    }
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = out.with_suffix(".tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(content, temporary)
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise StorageError(f"{out} cannot be written ({error}): mend it and repeat") from None
    return Converted(len(content), sorted(name for name in found if name not in tensors))


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise ConfigError(
            "PyTorch is needed to read its checkpoints: pip install -e '.[torch]'"
        ) from None
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < TORCH:
        wanted = ".".join(map(str, TORCH))
        raise ConfigError(f"torch {torch.__version__} is too old to be safe: install {wanted}")
    return torch


def _require_size(source: Path, limit: int) -> None:
    """Raises before anything is read, also where an archive would become larger than its file."""
    too_large = DataError(
        f"{source} is larger than {limit / GIB:g} GiB: raise --limit_gib if meant"
    )
    if not source.is_file():
        raise DataError(f"no file {source}")
    if source.stat().st_size > limit:
        raise too_large
    if not zipfile.is_zipfile(source):
        return
    with zipfile.ZipFile(source) as archive:
        members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise DataError(f"{source} is a compressed archive, which torch.save does not write")
    if sum(member.file_size for member in members) > limit:
        raise too_large


def _load(torch: Any, source: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source, map_location="cpu", weights_only=True)
    # Whatever damaged or hostile bytes make the reader say; nothing of them was executed.
    except Exception as error:
        text = " ".join(str(error).split())
        if code := re.search(r"GLOBAL ([\w.]+)", text):
            raise DataError(
                f"{source} asks for code ({code[1]}), which weights do not need; nothing was "
                "executed: do not use this file, or ask who made it for a state_dict alone"
            ) from None
        raise DataError(
            f"{source} is cut off, no checkpoint of PyTorch, or holds more than weights; nothing "
            "was executed: get it again, or ask who made it for a state_dict alone"
        ) from None


def _container(content: Any, source: Path, torch: Any) -> Mapping[Any, Any]:
    """The state dict in a checkpoint."""
    for name in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise DataError(f"{source} holds no state dict: {', '.join(CONTAINERS)} or at the top")
    if not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise DataError(f"{source} holds no tensors: {', '.join(CONTAINERS)} or at the top")
    return content


def _require_plain(torch: Any, tensors: Mapping[Any, Any], source: Path, limit: int) -> None:
    """Raises for names and tensors that a file of weights has no use for."""
    size = 0
    for name, value in tensors.items():
        if not isinstance(name, str):
            raise DataError(f"{source} has a tensor named {str(name)[:40]!r}: names must be text")
        plain = type(value) in (torch.Tensor, torch.nn.Parameter)
        if not plain or value.layout is not torch.strided or value.is_quantized or value.is_meta:
            raise DataError(f"{source}: {name} is no plain tensor: give a state_dict of those")
        size += value.numel() * value.element_size()
    if size > limit:  # a few bytes may claim to be a huge tensor
        raise DataError(
            f"{source}: its tensors would take {size / GIB:,.1f} GiB: raise --limit_gib if meant"
        )
