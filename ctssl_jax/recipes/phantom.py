"""What the presets `:demo` and `:smoke` change in every config: the embedded phantom, small.

Not a config of its own. The phantom is written to the paths of `presets` where it is not there yet.
`:demo` of pre-training, of cases and of the ablation is `make demo`; docs/reproduce.md says how its
numbers were chosen.
"""

from ctssl_jax.augment import Intensity, ViewGroup
from ctssl_jax.config import EncoderConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.data import DataConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods import Cases, Method, Supervised
from ctssl_jax.methods.cases import Pooling
from ctssl_jax.optim import OptimConfig
from ctssl_jax.optim.freezing import FreezeConfig
from ctssl_jax.presets import NODULES, PHANTOM, SCANS


def intensity() -> Intensity:
    """The default window, which grey data of one's own take as well, with the phantom's numbers."""
    return Intensity(mean=(0.28,), std=(0.256,))


def unknown_preset(preset: str, *known: str) -> ConfigError:
    """The error for a preset that a config does not have."""
    return ConfigError(f"no preset :{preset}; there is {', '.join(':' + name for name in known)}")


def pretrain_demo(method: Method, optim: OptimConfig) -> PretrainConfig:
    """Pre-training on chest scans: a minute on two CPU cores; views of 96 px or less."""
    return PretrainConfig(
        data=DataConfig(path=NODULES, canvas=96),
        intensity=intensity(),
        encoder=EncoderConfig.of(method, depth=18),
        method=method,
        optim=optim,
        epochs=6.0,
        log_every=10,
        checkpoint_every=90,
        picture_every=30,
    )


def pretrain_smoke(method: Method, optim: OptimConfig) -> PretrainConfig:
    """A few steps, for tests; `method` has views of 64 px or less."""
    config = pretrain_demo(method, optim)
    config.data = DataConfig(path=PHANTOM, canvas=64)
    config.batch_size, config.epochs, config.optim.warmup_epochs = 8, 0.3, 0.1
    config.log_every, config.checkpoint_every, config.picture_every = 2, 4, 4
    return config


def finetune_demo(config: FinetuneConfig) -> FinetuneConfig:
    """Lesion or no lesion on the phantom: half a minute at full size on two CPU cores."""
    config.task, config.intensity = "phantom", intensity()
    config.data = DataConfig(path=PHANTOM, canvas=64)
    config.encoder = EncoderConfig(depth=18)
    config.method = Supervised(view=_whole())
    config.batch_size, config.epochs, config.freeze.epochs = 16, 5, 1
    config.optim.lr, config.checkpoint_every_epochs = 1e-3, 5
    return config


def cases_demo(config: FinetuneConfig) -> FinetuneConfig:
    """Chest scans with nodules or without: ten seconds a run on two CPU cores."""
    config = finetune_demo(config)
    config.task, config.data = "chest_nodules", DataConfig(path=NODULES, canvas=64)
    config.method = Cases(slices=2, pooling=Pooling.MEAN, view=_whole())
    config.batch_size, config.steps, config.validate_every = 4, 40, 20
    config.freeze = FreezeConfig(epochs=0)
    return config


def cases_smoke(config: FinetuneConfig) -> FinetuneConfig:
    """A few steps for tests, on scans of which two slices in 24 hold a lesion."""
    config = finetune_demo(config)
    config.task, config.data = "phantom_scans", DataConfig(path=SCANS, canvas=64)
    config.method = Cases(slices=4, pooling=Pooling.ATTENTION, view=_whole())
    config.batch_size, config.freeze.epochs = 4, 1
    config.epochs, config.checkpoint_every_epochs = 2, 1
    return config


def _whole() -> ViewGroup:
    """Whole slices at 64 px."""
    return ViewGroup(size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0))


def finetune_smoke(config: FinetuneConfig) -> FinetuneConfig:
    """A few steps, for tests."""
    config = finetune_demo(config)
    config.batch_size, config.epochs, config.freeze.epochs = 8, 2, 1
    config.checkpoint_every_epochs, config.fraction = 1, 0.1
    return config
