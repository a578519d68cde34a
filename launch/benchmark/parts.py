"""Parts of the training step of a config, timed by turns in one process on random slices."""

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jaxtyping import Array

from ctssl_jax.config import PretrainConfig
from ctssl_jax.hosts import sharding
from ctssl_jax.methods import SparK
from ctssl_jax.methods.base import Progress, encode_each
from ctssl_jax.nn.active import encode
from ctssl_jax.nn.decoder import SparKHead
from ctssl_jax.nn.masked import random_mask
from launch.benchmark.steps import KIND, SLICES, Prepared, compile_step, flops, prepare, views

STEP = "training step"  # the row that shares are of

Seconds = dict[str, list[float]]


class Part(NamedTuple):
    """Something to time, and the FLOPs that its compiler counts."""

    run: Callable[[], None]
    flops: float


def compiled(function: Callable[..., Any], *arguments: Any) -> Part:
    """A function with what it is called with; compiled now."""
    program = jax.jit(function).lower(*arguments).compile()
    return Part(lambda: jax.block_until_ready(program(*arguments)), flops(program))


def whole_step(prepared: Prepared) -> Part:
    """The training step, with augmentation; it uses up what was prepared."""
    run, program = compile_step(prepared)
    return Part(run, flops(program))


def augment(config: PretrainConfig) -> dict[str, Part]:
    """Stored slices to network input, and the step."""
    prepared = prepare(config)
    mesh = sharding.make_mesh()
    same, shared = sharding.replicated(mesh), sharding.split(mesh)
    program = jax.jit(partial(views, config), in_shardings=(same, shared))
    return {
        "augmentation": compiled(program, prepared.key, prepared.batch),
        STEP: whole_step(prepared),
    }


def breakdown(config: PretrainConfig) -> dict[str, Part]:
    """Augmentation, loss with gradients and what it is made of, optimizer; and the step.

    Parts alone need not sum up to the whole: XLA fuses across them. Encoder, densification and
    decoder are forward and backward passes, the encoder's with all views of the student.
    """
    from ctssl_jax.pretrain import make_program

    program, (_, state, batch, key) = make_program(config, SLICES, KIND), prepare(config)
    made = jax.jit(partial(views, config))(key, batch)
    keys = jax.random.split(key, config.batch_size)
    progress = Progress(state.step, program.total_steps, program.steps_per_epoch, 1)

    def gradient(params: Any) -> Any:
        given = {**batch, "views": made, "keys": keys}
        grad = jax.value_and_grad(config.method.loss, argnums=1, has_aux=True)
        return grad(program.encoder, params, state, given, key, progress)

    def update(state: Any, grads: Any) -> Any:
        updates, opt_state = program.tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return config.method.after_update(
            state.replace(params=params, opt_state=opt_state), progress
        )

    inner = spark_parts if isinstance(config.method, SparK) else encoder_parts
    return {
        "augmentation": compiled(partial(views, config), key, batch),
        "loss and gradients": compiled(gradient, state.params),
        **inner(config, program.encoder, state, made, keys),
        "optimizer": compiled(update, state, state.params),
        STEP: whole_step(prepare(config)),
    }


def backward(function: Callable[..., Any], *arguments: Any) -> Part:
    """A function and its gradients of all arguments, along its own outputs."""

    def run(*arguments: Any) -> Any:
        outputs, pull = jax.vjp(function, *arguments)
        return pull(outputs)

    return compiled(run, *arguments)


class Densification(SparKHead):
    """The part of SparK's head before the decoder, with the same parameters."""

    @nn.compact
    def __call__(self, stages: tuple[Array, ...], mask: Array, train: bool = False) -> list[Array]:  # type: ignore[override]
        """Returns the densified maps, coarsest first."""
        levels = enumerate(reversed(stages))
        return [self._densify(stage, mask, level, train) for level, stage in levels]


def spark_parts(
    config: PretrainConfig, encoder: Any, state: Any, made: tuple[Array, ...], keys: Array
) -> dict[str, Part]:
    """SparK's encoder, densification and decoder."""
    method: Any = config.method
    image = made[0][0]
    mask, _ = random_mask(keys, method.grid, method.visible)
    stats = state.batch_stats
    head = method.head(encoder, image.shape[-1])
    alone = Densification(head.width, head.channels, head.dtype, head.param_dtype)

    def encoded(params: Any) -> tuple[Array, ...]:
        apply = partial(
            encoder.apply,
            {"params": params, "batch_stats": stats["encoder"]},
            train=True,
            mutable=["batch_stats"],
            rngs={"drop_path": keys[0]},
        )
        return encode(apply, image, mask, method.visible, method.sparse)[0]

    def decoded(head: SparKHead, params: Any, stages: tuple[Array, ...]) -> Any:
        variables = {"params": params, "batch_stats": stats["head"]}
        return head.apply(variables, stages, mask, True, mutable=["batch_stats"])[0]

    stages, params = jax.jit(encoded)(state.params["encoder"]), state.params["head"]
    return {
        "- encoder": backward(encoded, state.params["encoder"]),
        "- densification": backward(partial(decoded, alone), params, stages),
        "- densification and decoder": backward(partial(decoded, head), params, stages),
    }


def encoder_parts(
    config: PretrainConfig, encoder: Any, state: Any, made: tuple[Array, ...], keys: Array
) -> dict[str, Part]:
    """The student's encoder on all views, those of a resolution one after the other."""
    stats = state.batch_stats["encoder"]

    def encoded(params: Any) -> list[Array]:
        return [encode_each(encoder, params, stats, group, keys[0])[0] for group in made]

    return {"- encoder": backward(encoded, state.params["encoder"])}


PARTS: dict[str, Callable[[PretrainConfig], dict[str, Part]]] = {
    "augment": augment,
    "breakdown": breakdown,
}


def interleave(parts: Mapping[str, Part], repeats: int) -> Seconds:
    """Seconds of each part, taken by turns so that a change of the machine's speed meets all.

    At each turn a part runs twice and the second is timed: the first finds the caches full of what
    others left, and pays for memory that the system took back.
    """
    seconds: Seconds = {name: [] for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            part.run()
            began = time.perf_counter()
            part.run()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def summary(
    parts: Mapping[str, Part], seconds: Seconds, batch_size: int
) -> dict[str, dict[str, float]]:
    """By row: median, fastest and slowest ms per batch, images per second, share of the step."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        name: {
            "ms_per_batch": 1e3 * medians[name],
            "ms_min": 1e3 * min(values),
            "ms_max": 1e3 * max(values),
            "images_per_second": batch_size / medians[name],
            "share_of_step": medians[name] / medians[STEP],
            "flops": parts[name].flops,
        }
        for name, values in seconds.items()
    }


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The summary as Markdown."""
    lines = ["| part | ms | min | max | images/s | of the step | GFLOP |", "|---" * 7 + "|"]
    for name, row in rows.items():
        cells = [
            *(name, f"{row['ms_per_batch']:,.1f}", f"{row['ms_min']:,.1f}"),
            *(f"{row['ms_max']:,.1f}", f"{row['images_per_second']:,.1f}"),
            *(f"{row['share_of_step']:.1%}", f"{row['flops'] / 1e9:,.2f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
