"""PyTorch implementations to compare ours with: `from oracles import Lars, SwaVLoss, torch`.

`make test` installs them (requirements-oracles.txt). Where they are missing, a test module that
imports this one is skipped.
"""

import importlib.util
import sys
import warnings

import pytest

MISSING = "missing: pip install -r requirements-oracles.txt"

torch = pytest.importorskip("torch", reason=f"torch is {MISSING}")
for library in ("torchvision", "timm", "lightly"):
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is {MISSING}", allow_module_level=True)


def import_torchvision() -> object | None:
    """Imports torchvision, also where its compiled operators do not fit this build of torch.

    timm and lightly import it for models and transforms that no test uses. Its import needs two
    operators to be declared; they still cannot be called.

    Returns:
      What must stay alive for the declarations to hold; None if there was no need for them.
    """
    try:
        importlib.import_module("torchvision")
        return None
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    declarations = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        declarations.define(f"{operator}(Tensor boxes, Tensor scores, float iou) -> Tensor")
    importlib.import_module("torchvision")
    return declarations


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what these warn of while being imported is not about us
    DECLARATIONS = import_torchvision()
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
    "sinkhorn",
    "timm_models",
    "torch",
]
