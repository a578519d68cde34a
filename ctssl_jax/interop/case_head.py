"""The head of a run of cases, for PyTorch: what the features of a case's slices are pooled by.

case_head.safetensors    weights of the classifier, and of the attention where there is one
case_head.py             a module of PyTorch that applies them to the features of one case
parity_case.npz          slices of no patient as one case: input, features, logits and shares
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from ctssl_jax.errors import ConfigError
from ctssl_jax.interop.weights import Weights
from ctssl_jax.methods import Cases
from ctssl_jax.methods.base import PyTree

WEIGHTS, CODE, PARITY = "case_head.safetensors", "case_head.py", "parity_case.npz"
SLICES = 5  # of the case in the file of parity

MODULE = '''"""The head of a classifier of cases. Written by ctssl_jax; needs PyTorch alone.

    head = CaseHead()
    head.load_state_dict(safetensors.torch.load_file("case_head.safetensors"), strict=True)
    logits, shares = head(features)  # of the slices of one case, [n, {width}], by the encoder
"""

import torch


class CaseHead(torch.nn.Module):
    """Pooling ({pooling}) and one linear layer; what is pooled: {learn}."""

    pooling, top_k, learn = {pooling!r}, {top_k}, {learn!r}

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear({width}, {classes})
        if self.pooling == "attention":
            self.V = torch.nn.Linear({width}, {hidden})
            self.U = torch.nn.Linear({width}, {hidden})
            self.w = torch.nn.Linear({hidden}, 1, bias=False)

    def forward(self, features):
        """Logits [{classes}] of a case, and the share of each of its slices [n]."""
        if self.learn == "slices":  # log-odds of slices against the first class
            logits = self.fc(features)
            pooled, shares = self.pool(logits[:, 1:] - logits[:, :1])
            return torch.nn.functional.pad(pooled, (1, 0)), shares
        pooled, shares = self.pool(features)
        return self.fc(pooled), shares

    def pool(self, x):
        if self.pooling == "attention":
            score = self.w(torch.tanh(self.V(x)) * torch.sigmoid(self.U(x)))[:, 0]
            shares = score.softmax(dim=0)
            return shares @ x, shares
        if self.pooling == "mean":
            return x.mean(dim=0), torch.full((len(x),), 1 / len(x))
        k = min(1 if self.pooling == "max" else self.top_k, len(x))
        largest, places = x.topk(k, dim=0)
        won = torch.zeros(x.shape).scatter_(0, places, 1.0)
        return largest.mean(dim=0), won.mean(dim=1) / k
'''


def tensors(weights: Weights) -> dict[str, np.ndarray]:
    """The head's weights under the names of `MODULE`."""
    head = weights.params["head"]
    named = {"fc": head["classifier"]["linear"], **head.get("attention", {})}
    found = {}
    for name, layer in named.items():
        found[f"{name}.weight"] = np.ascontiguousarray(np.asarray(layer["kernel"], np.float32).T)
        if "bias" in layer:
            found[f"{name}.bias"] = np.asarray(layer["bias"], np.float32)
    return found


def code(weights: Weights) -> str:
    """The module, with the numbers of the run."""
    method = _method(weights)
    width = np.shape(weights.params["head"]["classifier"]["linear"]["kernel"])[0]
    return MODULE.format(
        width=width,
        classes=len(weights.classes),
        hidden=method.hidden,
        pooling=method.pooling.value,
        top_k=method.top_k,
        learn=method.learn.value,
    )


def parity(weights: Weights) -> dict[str, np.ndarray]:
    """One case the whole way: `slices`, `input`, `features`, `logits` and `shares`."""
    slices = weights.recipe.example(SLICES)
    image = weights.recipe.apply(slices)
    features = weights.features(image)
    logits, shares = case_logits(_method(weights), weights.params["head"], features)
    return {
        "slices": slices,
        "input": image,
        "features": features,
        "logits": logits,
        "shares": shares,
    }


def case_logits(
    method: Cases, head: PyTree, features: Float[np.ndarray, "n d"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " n"]]:
    """Of one case, given the features of all its slices."""
    bag: Any = jnp.asarray(features)[None]
    logits, shares = method.case_logits(head, bag, jnp.ones(bag.shape[:2], bool))
    return np.asarray(logits[0], np.float32), np.asarray(shares[0], np.float32)


def _method(weights: Weights) -> Cases:
    if not isinstance(weights.method, Cases):
        raise ConfigError(f"{weights.run} classifies slices: it has no head of cases")
    return weights.method
