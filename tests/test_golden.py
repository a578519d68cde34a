"""SparK against the numbers of the official PyTorch implementation.

The file named by CTSSL_GOLDEN (default: tests/golden/spark.json) holds what the reference computes in
float64 for inputs and weights given by a formula; `tests/golden/README.md` states it. The same
comparison runs in float64 and float32.
"""

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
GOLDEN = Path(os.environ.get("CTSSL_GOLDEN", HERE / "golden" / "spark.json"))
CASES = json.loads(GOLDEN.read_text())["cases"]
FORWARD = {"float64": 1e-8, "float32": 1e-4}
BACKWARD = {"float64": 1e-6, "float32": 1e-3}


def rng(*key):
    return np.random.default_rng(zlib.crc32(":".join(key).encode()))


def formula(salt, name, shape):
    """The value of a parameter with the reference's name and shape."""
    z = rng(salt, name).standard_normal(shape)
    if name.startswith("mask_tokens"):
        return 0.02 * z
    if len(shape) == 4:
        return z * np.sqrt(2 / np.prod(shape[1:]))
    if name.endswith("bias"):
        return 0.05 * z
    return 1 + 0.1 * z


def compute(case, precision):
    """What our implementation makes of a case, under the reference's names and in its layout."""
    import jax
    import jax.numpy as jnp
    import optax

    from ctssl_jax import interop
    from ctssl_jax.augment import ViewGroup
    from ctssl_jax.methods.spark import SparK, reconstruction_loss
    from ctssl_jax.nn.resnet import ResNet
    from ctssl_jax.optim import OptimConfig, make_optimizer

    dtype = jnp.dtype(precision)
    salt, size, batch = case["salt"], case["size"], case["batch"]
    depth = int(case["model"].removeprefix("resnet"))
    encoder = ResNet(depth=depth, dtype=dtype, param_dtype=dtype)
    method = SparK(mask_ratio=case["mask_ratio"], view=ViewGroup(size=size))
    assert method.visible == case["len_keep"]

    abstract = jax.eval_shape(lambda key: method.init(encoder, key, 3), jax.random.key(0))

    def fill(path, leaf):
        torch_shape = interop.to_torch_layout(path, np.empty(leaf.shape, bool)).shape
        value = formula(salt, interop.spark_name(path), torch_shape)
        return jnp.asarray(interop.from_torch_layout(path, value), dtype)

    params = interop.map_named(fill, abstract.params)
    stats = interop.map_named(
        lambda path, leaf: jnp.full(leaf.shape, float(path[-1] == "var"), dtype),
        abstract.batch_stats,
    )
    image = rng(salt, "input").standard_normal((batch, 3, size, size))
    image = jnp.asarray(image.transpose(0, 2, 3, 1), dtype)
    grid = size // 32
    drawn = rng(salt, "mask").random((batch, grid * grid)).argsort(1)[:, : case["len_keep"]]
    assert np.sort(drawn, axis=1).tolist() == case["active"]
    mask = np.zeros((batch, grid * grid), bool)
    np.put_along_axis(mask, drawn, True, axis=1)
    mask = jnp.asarray(mask.reshape(batch, grid, grid))

    def loss_fn(params):
        prediction, stages, new_stats = method.forward(
            encoder, params, stats, image, mask, train=True
        )
        loss = reconstruction_loss(image, prediction, mask)
        return loss, (prediction, stages, new_stats)

    grad_fn = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    (loss, (prediction, stages, new_stats)), grads = grad_fn(params)

    lamb = case["lamb"]
    config = OptimConfig(
        b1=lamb["betas"][0], b2=lamb["betas"][1], eps=lamb["eps"], clip_norm=lamb["max_grad_norm"]
    )
    tx = make_optimizer(
        config,
        lambda step: jnp.asarray(lamb["lr"], dtype),
        lambda step: jnp.asarray(lamb["weight_decay"], dtype),
    )
    updates, _ = jax.jit(lambda g, p: tx.update(g, tx.init(p), p))(grads, params)

    def nchw(x):
        return np.asarray(x).transpose(0, 3, 1, 2)

    return {
        "loss": float(loss),
        "stages": [nchw(stage) for stage in stages],
        "reconstruction": nchw(prediction),
        "grad_global_norm": float(optax.tree.norm(grads)),
        "grads": interop.to_torch(grads),
        "running": running_buffers(new_stats, case, mask),
        "deltas": interop.to_torch(updates),
    }


def running_buffers(stats, case, mask):
    """Our running statistics as torch stores them: with the unbiased variance of the batch."""
    from ctssl_jax import interop

    buffers = interop.to_torch(stats)
    for name in [name for name in buffers if name.endswith("running_var")]:
        batch_variance = (buffers[name] - 0.9) / 0.1
        n = positions(name, case, int(mask.sum()))
        buffers[name] = 0.9 + 0.1 * batch_variance * n / (n - 1)
    return buffers


def positions(name, case, visible):
    """How many positions the statistics of a BatchNorm are taken over."""
    parts = name.split(".")
    if parts[0] == "dense_decoder":
        side = case["size"] // 32 * 2 ** (int(parts[2]) + 1)
        return case["batch"] * side**2
    if parts[0] == "densify_norms":
        return visible * 4 ** int(parts[1])
    if parts[2] == "bn1":  # the stem, at half the resolution
        return visible * 16**2
    stage, block = int(parts[2].removeprefix("layer")), int(parts[3])
    side = 2 ** (4 - stage)
    first_of_bottleneck = case["model"] == "resnet50" and parts[4] == "bn1"
    if stage > 1 and block == 0 and first_of_bottleneck:  # before the block's stride
        side *= 2
    return visible * side**2


def close(ours, theirs, tolerance, what, scale=None):
    scale = abs(theirs) if scale is None else scale
    assert abs(ours - theirs) <= tolerance * scale, f"{what}: ours {ours}, reference {theirs}"


def compare_samples(ours, samples, tolerance, what):
    """Single values, relative to the root mean square of the whole array."""
    scale = np.linalg.norm(ours) / np.sqrt(ours.size)
    for index, value in samples:
        close(ours.flat[index], value, tolerance, f"{what}[{index}]", max(scale, abs(value)))


def check(case, precision):
    ours = compute(case, precision)
    forward, backward = FORWARD[precision], BACKWARD[precision]
    close(ours["loss"], case["loss"], forward, "loss")
    maps = [*zip(ours["stages"], case["stages"], strict=True)]
    maps.append((ours["reconstruction"], case["reconstruction"]))
    for array, theirs in maps:
        what = f"map {theirs['shape']}"
        assert list(array.shape) == theirs["shape"]
        close(np.linalg.norm(array), theirs["norm"], forward, f"{what} norm")
        if "mean" in theirs:
            close(array.mean(), theirs["mean"], forward, f"{what} mean")
        compare_samples(array, theirs["samples"], forward, what)

    total = case["grad_global_norm"]
    close(ours["grad_global_norm"], total, backward, "global gradient norm")
    assert ours["grads"].keys() == case["grad_norms"].keys()
    for name, norm in case["grad_norms"].items():
        gradient = ours["grads"][name]
        if norm < 1e-9 * total:  # a bias before a BatchNorm: truly zero
            assert np.linalg.norm(gradient) < 1e-6 * total, name
            continue
        close(np.linalg.norm(gradient), norm, backward, f"gradient norm of {name}")
        compare_samples(gradient, case["grad_samples"][name], backward, f"gradient of {name}")

    assert ours["running"].keys() == case["running"].keys()
    for name, norm in case["running"].items():
        close(np.linalg.norm(ours["running"][name]), norm, forward, name)

    assert ours["deltas"].keys() == case["lamb"]["delta_norms"].keys()
    for name, norm in case["lamb"]["delta_norms"].items():
        if case["grad_norms"][name] < 1e-9 * total:  # LAMB of rounding noise
            continue
        close(np.linalg.norm(ours["deltas"][name]), norm, backward, f"LAMB step of {name}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["model"])
def test_spark_equals_golden_in_float32(case):
    check(case, "float32")


def test_spark_equals_golden_in_float64():
    """In a process of its own, since 64-bit mode is a property of the process."""
    done = subprocess.run(
        [sys.executable, __file__],
        env={**os.environ, "JAX_ENABLE_X64": "1", "XLA_FLAGS": "", "CTSSL_GOLDEN": str(GOLDEN)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_schedules_equal_golden():
    from ctssl_jax.optim import OptimConfig, lr_schedule, weight_decay_schedule

    golden = json.loads(GOLDEN.read_text())["schedule"]
    config = OptimConfig(
        lr=golden["peak_lr"], weight_decay=golden["wd"], weight_decay_end=golden["wd_end"]
    )
    lr = lr_schedule(config, golden["warmup_steps"], golden["total_steps"])
    decay = weight_decay_schedule(config, golden["total_steps"])
    for point in golden["points"]:
        # float32: the last points are differences of nearly equal numbers
        assert float(lr(point["step"])) == pytest.approx(point["lr"], rel=1e-4, abs=1e-6 * golden["peak_lr"])
        assert float(decay(point["step"])) == pytest.approx(point["weight_decay"], rel=1e-5)


if __name__ == "__main__":
    for golden_case in CASES:
        check(golden_case, "float64")
