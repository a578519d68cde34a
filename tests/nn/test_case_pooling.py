"""Pooling of a case's slices against NumPy, and gated attention against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctssl_jax.nn.pooling import GatedAttention, mean_of_slices, top_of_slices

LENGTHS = (1, 3, 5, 2)
PADDED, WIDTH = 5, 7


@pytest.fixture
def bags():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((len(LENGTHS), PADDED, WIDTH)).astype(np.float32)
    valid = np.arange(PADDED) < np.array(LENGTHS)[:, None]
    x[~valid] = 1e6  # what is padding must not be seen
    return x, valid


def test_mean_is_that_of_the_slices(bags):
    x, valid = bags
    pooled, shares = mean_of_slices(jnp.asarray(x), jnp.asarray(valid))
    for case, n in enumerate(LENGTHS):
        np.testing.assert_allclose(pooled[case], x[case, :n].mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shares[case], [1 / n] * n + [0] * (PADDED - n), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_top_is_the_mean_of_the_largest(bags, k):
    x, valid = bags
    pooled, shares = top_of_slices(jnp.asarray(x), jnp.asarray(valid), k)
    for case, n in enumerate(LENGTHS):
        largest = np.sort(x[case, :n], axis=0)[-k:]
        np.testing.assert_allclose(pooled[case], largest.mean(axis=0), rtol=1e-5, atol=1e-6)
        order = np.argsort(-x[case, :n], axis=0, kind="stable")[:k]
        won = np.array([(order == slice_).any(axis=0).mean() for slice_ in range(n)])
        np.testing.assert_allclose(shares[case, :n], won / min(k, n), rtol=1e-5)
        np.testing.assert_array_equal(shares[case, n:], 0)


def test_gradients_of_padding_are_none(bags):
    x, valid = map(jnp.asarray, bags)
    attention = GatedAttention(4)
    params = attention.init(jax.random.key(0), x, valid)
    poolings = {
        "mean": lambda x: mean_of_slices(x, valid)[0],
        "top": lambda x: top_of_slices(x, valid, 2)[0],
        "attention": lambda x: attention.apply(params, x, valid)[0],
    }
    for name, pooling in poolings.items():
        slope = jax.grad(lambda x, pooling=pooling: jnp.square(pooling(x)).sum())(x)
        assert np.isfinite(slope).all(), name
        np.testing.assert_array_equal(slope[~valid], 0, err_msg=name)


def test_attention_is_the_formula_of_its_paper(bags):
    x, valid = bags
    attention = GatedAttention(4)
    params = attention.init(jax.random.key(1), jnp.asarray(x), jnp.asarray(valid))
    pooled, shares = attention.apply(params, jnp.asarray(x), jnp.asarray(valid))
    v, u, w = (params["params"][name] for name in ("V", "U", "w"))
    for case, n in enumerate(LENGTHS):
        h = x[case, :n].astype(np.float64)
        content = np.tanh(h @ v["kernel"] + v["bias"])
        gate = 1 / (1 + np.exp(-(h @ u["kernel"] + u["bias"])))
        score = ((content * gate) @ w["kernel"])[:, 0]
        expected = np.exp(score - score.max())
        expected /= expected.sum()
        np.testing.assert_allclose(shares[case, :n], expected, rtol=1e-4)
        np.testing.assert_allclose(pooled[case], expected @ h, rtol=1e-4, atol=1e-5)


def test_attention_and_its_gradient_equal_pytorch(bags):
    torch = pytest.importorskip("torch")
    x, valid = bags
    attention = GatedAttention(4)
    params = attention.init(jax.random.key(2), jnp.asarray(x), jnp.asarray(valid))["params"]
    weights = {
        name: {key: torch.tensor(np.array(value), requires_grad=True) for key, value in of.items()}
        for name, of in params.items()
    }
    h, mask = torch.tensor(x), torch.tensor(valid)

    def linear(name, x):
        of = weights[name]
        return torch.nn.functional.linear(x, of["kernel"].T, of.get("bias"))

    score = linear("w", torch.tanh(linear("V", h)) * torch.sigmoid(linear("U", h)))[..., 0]
    shares = score.masked_fill(~mask, -torch.inf).softmax(dim=1)
    loss = torch.einsum("cn,cnd->cd", shares, h.masked_fill(~mask[..., None], 0)).square().sum()
    loss.backward()

    def ours(params):
        pooled, _ = attention.apply(
            {"params": params}, jnp.where(present[..., None], x, 0.0), present
        )
        return jnp.square(pooled).sum()

    present = jnp.asarray(valid)
    found, slopes = jax.value_and_grad(ours)(params)
    np.testing.assert_allclose(found, loss.item(), rtol=1e-5)
    for name, of in slopes.items():
        for key, slope in of.items():
            theirs = weights[name][key].grad.numpy()
            np.testing.assert_allclose(slope, theirs, rtol=2e-3, atol=1e-5)
