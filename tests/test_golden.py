"""SparK against the numbers of the official PyTorch implementation.

The file named by CTSSL_GOLDEN (default: tests/golden/spark.json) holds what the reference computes
in float64 for inputs and weights given by a formula; tests/golden/README.md states it.

In float64 every quantity must equal it to 1e-8 (forward) and 1e-6 (gradients, LAMB). In float32 the
tolerances are 1e-4 and 1e-2, or `AMPLIFICATION` times what rounding the inputs to float32 alone
moves the quantity in our float64 (just shown equal to the reference), whichever is more. No float32
implementation can promise less: with 8 visible positions in the last stage, ResNet-50's gradients
move by 1e-3 by that rounding, and ResNet-18 has an activation so near 0 that on one core its ReLU
decides otherwise than on two, which moves its gradients by 3e-3. Convolutions of float64 are
multiplied out (`float64.py`), those of float32 are the ones of users. Both run in a process of
their own, because 64-bit mode belongs to a process.
"""

import json
import os
import subprocess
import sys
import zlib
from functools import partial
from pathlib import Path

import compiler_options
import numpy as np
import pytest

from ctssl_jax.hosts import platform

HERE = Path(__file__).parent
GOLDEN = Path(os.environ.get("CTSSL_GOLDEN", HERE / "golden" / "spark.json")).absolute()
CASES = json.loads(GOLDEN.read_text())["cases"]
NAMES = [f"{i}-{case['model']}-{case['size']}px" for i, case in enumerate(CASES)]
BOTH = ("float64", "float32")
FORWARD = {"float64": 1e-8, "float32": 1e-4}
BACKWARD = {"float64": 1e-6, "float32": 1e-2}
AMPLIFICATION = 20  # rounding happens at each of some 60 layers, not at the input alone
ROUNDING = 1e-5  # of the global norm: what is left of terms that cancel, as in biases before a norm
# Most of the time is compilation, and this halves it. Not for float32, which is tested as it is
# compiled for users: of other rounding, one ReLU of ResNet-18 moves all its gradients by 3e-3.
COMPILER = {"float64": compiler_options.OPTIONS, "float32": {}}


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


class Implementation:
    """Our SparK in one form, at one precision, filled with a case's formula.

    Names and layout are torch's.
    """

    def __init__(self, case, form, precision):
        import jax
        import jax.numpy as jnp

        from ctssl_jax.augment import ViewGroup
        from ctssl_jax.methods.spark import SparK, reconstruction_loss
        from ctssl_jax.nn.active import SparseForm
        from ctssl_jax.nn.resnet import ResNet
        from ctssl_jax.optim import OptimConfig, make_optimizer

        self.case, self.dtype = case, jnp.dtype(precision)
        depth = int(case["model"].removeprefix("resnet"))
        encoder = ResNet(depth=depth, dtype=self.dtype, param_dtype=self.dtype)
        method = SparK(
            mask_ratio=case["mask_ratio"],
            view=ViewGroup(size=case["size"]),
            sparse=SparseForm(form),
        )
        assert method.visible == case["len_keep"]
        self.abstract = jax.eval_shape(lambda key: method.init(encoder, key, 3), jax.random.key(0))

        lamb = case["lamb"]
        config = OptimConfig(
            b1=lamb["betas"][0],
            b2=lamb["betas"][1],
            eps=lamb["eps"],
            clip_norm=lamb["max_grad_norm"],
        )
        tx = make_optimizer(
            config,
            lambda step: jnp.asarray(lamb["lr"], self.dtype),
            lambda step: jnp.asarray(lamb["weight_decay"], self.dtype),
        )

        def loss_fn(params, stats, image, mask):
            prediction, stages, stats = method.forward(
                encoder, params, stats, image, mask, train=True
            )
            return reconstruction_loss(image, prediction, mask), (prediction, stages, stats)

        @partial(jax.jit, compiler_options=COMPILER[precision])
        def evaluate(params, stats, image, mask):
            grad = jax.value_and_grad(loss_fn, has_aux=True)
            (loss, aux), grads = grad(params, stats, image, mask)
            return loss, *aux, grads

        self.evaluate = evaluate
        self.descend = jax.jit(
            lambda grads, params: tx.update(grads, tx.init(params), params)[0],
            compiler_options=COMPILER[precision],
        )

    def compute(self, rounded=False, descend_along=None):
        """All quantities.

        `rounded` puts parameters and input through float32 first; `descend_along` gives LAMB other
        gradients than the ones found here.
        """
        import jax
        import jax.numpy as jnp

        from ctssl_jax.interop import names

        case, salt = self.case, self.case["salt"]

        def place(value):
            return jnp.asarray(value.astype(np.float32) if rounded else value, self.dtype)

        def fill(path, leaf):
            torch_shape = names.to_torch_layout(path, np.empty(leaf.shape, bool)).shape
            value = formula(salt, names.spark_name(path), torch_shape)
            return place(names.from_torch_layout(path, value))

        params = names.map_named(fill, self.abstract.params)
        stats = names.map_named(
            lambda path, leaf: jnp.full(leaf.shape, float(path[-1] == "var"), self.dtype),
            self.abstract.batch_stats,
        )
        size, batch, grid = case["size"], case["batch"], case["size"] // 32
        image = rng(salt, "input").standard_normal((batch, 3, size, size)).transpose(0, 2, 3, 1)
        drawn = rng(salt, "mask").random((batch, grid * grid)).argsort(1)[:, : case["len_keep"]]
        assert np.sort(drawn, axis=1).tolist() == case["active"]
        mask = np.zeros((batch, grid * grid), bool)
        np.put_along_axis(mask, drawn, True, axis=1)

        loss, prediction, stages, stats, grads = self.evaluate(
            params, stats, place(image), jnp.asarray(mask.reshape(batch, grid, grid))
        )
        self.grads = grads
        given = grads if descend_along is None else descend_along
        updates = self.descend(jax.tree.map(lambda g: g.astype(self.dtype), given), params)
        maps = {f"stage {i}": nchw(stage) for i, stage in enumerate(stages)}
        return {
            "loss": {"loss": np.asarray(loss)},
            "maps": {**maps, "reconstruction": nchw(prediction)},
            "running": running_buffers(stats, case, int(mask.sum())),
            "grads": names.to_torch(grads),
            "deltas": names.to_torch(updates),
        }


def nchw(x):
    return np.asarray(x).transpose(0, 3, 1, 2)


def running_buffers(stats, case, visible):
    """Our running statistics as torch stores them: with the unbiased variance of the batch."""
    from ctssl_jax.interop import names

    buffers = names.to_torch(stats)
    for name in [name for name in buffers if name.endswith("running_var")]:
        batch_variance = (buffers[name] - 0.9) / 0.1
        n = positions(name, case, visible)
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
    if stage > 1 and block == 0 and case["model"] == "resnet50" and parts[4] == "bn1":
        side *= 2  # before the block's stride
    return visible * side**2


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def zero_gradients(case):
    """Parameters with a truly zero gradient, such as a bias before a BatchNorm: only noise."""
    total = case["grad_global_norm"]
    return {name for name, value in case["grad_norms"].items() if value < 1e-9 * total}


def compare_to_golden(ours, case, forward, backward):
    """The complaints of comparing norms, means and samples with the file's."""
    wrong, zero = [], zero_gradients(case)

    def expect(value, reference, tolerance, what, scale=None):
        if not abs(value - reference) <= tolerance * (scale or abs(reference)):
            wrong.append(f"{what}: ours {value}, reference {reference}")

    def samples(array, reference, tolerance, what):  # relative to the array's root mean square
        scale = norm(array) / np.sqrt(array.size)
        for index, value in reference:
            expect(array.flat[index], value, tolerance, f"{what}[{index}]", max(scale, abs(value)))

    expect(float(ours["loss"]["loss"]), case["loss"], forward, "loss")
    for (name, array), theirs in zip(
        ours["maps"].items(), [*case["stages"], case["reconstruction"]], strict=True
    ):
        assert list(array.shape) == theirs["shape"]
        expect(norm(array), theirs["norm"], forward, f"{name} norm")
        samples(array, theirs["samples"], forward, name)
        if "mean" in theirs:
            expect(array.mean(), theirs["mean"], forward, f"{name} mean")
    for group, reference in (("running", case["running"]), ("grads", case["grad_norms"])):
        assert ours[group].keys() == reference.keys()
    for name, value in case["running"].items():
        expect(norm(ours["running"][name]), value, forward, name)
    total = np.sqrt(sum(norm(gradient) ** 2 for gradient in ours["grads"].values()))
    expect(total, case["grad_global_norm"], backward, "global gradient norm")
    for name, value in case["grad_norms"].items():
        if name in zero:
            expect(norm(ours["grads"][name]), 0.0, 1e-9, f"gradient of {name}", total)
            continue
        expect(norm(ours["grads"][name]), value, backward, f"gradient norm of {name}")
        samples(ours["grads"][name], case["grad_samples"][name], backward, f"gradient of {name}")
    assert ours["deltas"].keys() == case["lamb"]["delta_norms"].keys()
    for name in case["lamb"]["delta_norms"].keys() - zero:  # LAMB makes steps of noise, too
        expect(
            norm(ours["deltas"][name]), case["lamb"]["delta_norms"][name], backward, f"LAMB: {name}"
        )
    return wrong


def compare_precisions(single, double, rounded, case):
    """The complaints of comparing float32 with float64, array by array.

    LAMB's steps, both along the float64 gradients, are compared by their norms, as the file has
    them: a first step is the sign of the gradient, which rounding turns where that is nearly zero.
    """
    wrong, zero = [], zero_gradients(case)
    floor = {"grads": ROUNDING * case["grad_global_norm"]}
    for group, arrays in double.items():
        stated = (BACKWARD if group in ("grads", "deltas") else FORWARD)["float32"]
        for name in arrays.keys() - zero:

            def error(other, group=group, name=name, reference=arrays[name]):
                if group == "deltas":
                    return abs(norm(other[group][name]) - norm(reference))
                return norm(other[group][name] - reference)

            scale, found, by_inputs = norm(arrays[name]), error(single), error(rounded)
            allowed = max(stated * scale, AMPLIFICATION * by_inputs, floor.get(group, 0.0))
            if not found <= allowed:
                wrong.append(
                    f"{group} {name} of norm {scale}: off by {found}, {by_inputs} by inputs"
                )
    return wrong


def main(name, form, *precisions):
    """Prints, as JSON, the complaints of one case by precision, float64 first."""
    platform.set_cpu_flags()  # as the program itself runs

    import float64
    from jax import lax

    lax.conv_general_dilated = float64.convolve
    case = CASES[NAMES.index(name)]
    in_double = Implementation(case, form, "float64")
    double = in_double.compute()
    found = {"float64": compare_to_golden(double, case, FORWARD["float64"], BACKWARD["float64"])}
    if "float32" in precisions:
        single = Implementation(case, form, "float32").compute(descend_along=in_double.grads)
        rounded = in_double.compute(rounded=True)
        found["float32"] = compare_precisions(single, double, rounded, case)
    print(json.dumps(found))


# Up to half a minute each, and with float32, compiled as for users, as long again. test_active
# holds the active form against the masked one.
@pytest.mark.parametrize(
    ("name", "form", "precisions"),
    [
        *((name, "masked", ("float64",)) for name in NAMES),
        *(pytest.param(name, "masked", BOTH, marks=pytest.mark.slow) for name in NAMES),
        *(pytest.param(name, "active", ("float64",), marks=pytest.mark.slow) for name in NAMES),
    ],
)
def test_spark_equals_golden(name, form, precisions):
    done = subprocess.run(
        [sys.executable, __file__, name, form, *precisions],
        env={**os.environ, "JAX_ENABLE_X64": "1", "XLA_FLAGS": "", "CTSSL_GOLDEN": str(GOLDEN)},
        cwd=HERE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == {precision: [] for precision in precisions}


def test_schedules_equal_golden():
    from ctssl_jax.optim import OptimConfig, lr_schedule, weight_decay_schedule

    golden = json.loads(GOLDEN.read_text())["schedule"]
    config = OptimConfig(
        lr=golden["peak_lr"],
        warmup_epochs=float(golden["warmup_steps"]),
        weight_decay=golden["wd"],
        weight_decay_end=golden["wd_end"],
    )
    lr = lr_schedule(config, 1, golden["total_steps"])
    decay = weight_decay_schedule(config, golden["total_steps"])
    for point in golden["points"]:
        # In float32 the last points are differences of nearly equal numbers.
        small = 1e-6 * golden["peak_lr"]
        assert float(lr(point["step"])) == pytest.approx(point["lr"], rel=1e-4, abs=small)
        assert float(decay(point["step"])) == pytest.approx(point["weight_decay"], rel=1e-5)


if __name__ == "__main__":
    main(*sys.argv[1:])
