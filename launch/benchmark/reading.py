"""Reading, decoding and batching alone, beside the training step that waits for it."""

import itertools
import time

from ctssl_jax import data
from ctssl_jax.config import PretrainConfig
from ctssl_jax.run.standardise import resolve
from launch.benchmark.parts import STEP, Part, Seconds, interleave, whole_step
from launch.benchmark.steps import prepare

READING = "reading"
CHUNK = 10  # batches that are timed together: threads finish theirs in bursts


def measure(config: PretrainConfig, repeats: int) -> tuple[dict[str, Part], Seconds]:
    """Seconds of a batch from the dataset, read on and on, and of a step without reading.

    They are not taken by turns: a pipeline reads ahead while others compute.

    Raises:
      DataError: the dataset cannot be read.
    """
    dataset = data.open_dataset(config.data.path)
    config = resolve(config, dataset)
    batches = iter(
        data.pretrain_batches(dataset, config.data, batch_size=config.batch_size, seed=config.seed)
    )
    for _ in itertools.islice(batches, config.data.prefetch + config.data.threads()):
        pass  # what had been read ahead
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in itertools.islice(batches, CHUNK):
            pass
        seconds.append((time.perf_counter() - began) / CHUNK)
    parts = {STEP: whole_step(prepare(config))}
    return {READING: Part(lambda: None, 0.0), **parts}, {
        READING: seconds,
        **interleave(parts, repeats),
    }
