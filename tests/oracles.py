"""PyTorch implementations to compare ours with: `from oracles import Lars, SwaVLoss, torch`.

`make test` installs them (requirements-oracles.txt). Where they are missing, a test module that
imports this one is skipped.
"""

import importlib.util
import warnings

import pytest

from launch.benchmark.torch.steps import import_torchvision

MISSING = "missing: pip install -r requirements-oracles.txt"

torch = pytest.importorskip("torch", reason=f"torch is {MISSING}")
for library in ("torchvision", "timm", "lightly"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is {MISSING}", allow_module_level=True)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these warn of while being imported is not about us
    import_torchvision()
    from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
    from lightly.loss.swav_loss import sinkhorn
    from timm import models as timm_models
    from timm.optim import Lamb, Lars

__all__ = [
    "Lamb",
    "Lars",
    "NTXentLoss",
    "NegativeCosineSimilarity",
    "SwaVLoss",
    "import_torchvision",
    "sinkhorn",
    "timm_models",
    "torch",
]
