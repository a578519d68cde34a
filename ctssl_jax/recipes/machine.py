"""What the presets `:laptop` and `:gpu` change in every pre-training: own data on one machine.

The presets are starting points, not results: nobody has tuned them on real data.
"""

import dataclasses

from ctssl_jax.config import EncoderConfig, Precision, PretrainConfig
from ctssl_jax.methods import Method
from ctssl_jax.optim import OptimConfig

SIZE = 128  # px: a third of the operations of 224 px; SparK then hides 10 of 16 patches
DEPTH = 18  # half the operations of ResNet-50 (He et al. 2016, Table 1: 1.8 and 3.8 GFLOPs)
CANVAS = 256  # px: twice the view, so that a crop of a quarter of the slice is not enlarged


def laptop(
    config: PretrainConfig, method: Method, optim: OptimConfig, batch_size: int = 32
) -> PretrainConfig:
    """Thousands of slices on a CPU overnight.

    Args:
      config: the method's own recipe.
      method: with views of `SIZE` or less.
      optim: tried with 32 slices a step, as those of `:demo` were on the phantom. The recipes' own
        rates, moved to so small a batch, are meant for hundreds of times more steps.
      batch_size: slices of a step. The default is that of the paper's SparK run.
    """
    epochs = 50.0  # of 5,000 slices: 7,800 steps
    return dataclasses.replace(
        config,
        batch_size=batch_size,
        epochs=epochs,
        data=dataclasses.replace(config.data, canvas=CANVAS),
        encoder=EncoderConfig.of(method, depth=DEPTH),
        method=method,
        # a fiftieth of the run: SparK's recipe has a fortieth, SimCLR's and BYOL's a hundredth
        optim=dataclasses.replace(optim, warmup_epochs=epochs / 50, lr_batch=batch_size),
        precision=Precision.FLOAT32,  # of bfloat16 most CPUs make no use
        log_every=20,  # a line in a minute or so
        checkpoint_every=200,  # a crash costs minutes, not the night
        picture_every=200,
    )


def gpu(config: PretrainConfig, batch_size: int) -> PretrainConfig:
    """Tens of thousands of slices on one GPU of 24 GB: the method's own recipe, but shorter.

    Args:
      config: that recipe. Its learning rate follows the batch.
      batch_size: slices of a step, which bounds memory: docs/scale.md has what a compiler asks
        for 32 of them at full size, 4.5 GiB (SparK), 1.8 (MoCo), 4.2 (SwAV) and 3.3 (BYOL), of
        which 0.3 to 0.6 are the state. JAX takes three quarters of the memory, 18 GiB.
    """
    epochs = 400.0  # of 20,000 slices: 8 million views; a quarter of SparK's, half of MoCo's epochs
    warmup = config.optim.warmup_epochs * epochs / config.epochs  # the same share of the run
    made = dataclasses.replace(
        config,
        batch_size=batch_size,
        epochs=epochs,
        optim=dataclasses.replace(config.optim, warmup_epochs=warmup),
    )
    made.follow_batch()
    made.optim.lr_batch = batch_size
    return made
