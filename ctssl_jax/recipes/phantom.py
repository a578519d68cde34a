"""What the presets `:demo` and `:smoke` change in every config: the embedded phantom, small.

Not a config of its own. The phantom is written to the path below where it does not yet exist.
"""

from ctssl_jax.augment import Intensity, ViewGroup
from ctssl_jax.config import EncoderConfig, FinetuneConfig, PretrainConfig
from ctssl_jax.data import DataConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.methods import Cases, Method, Supervised
from ctssl_jax.methods.cases import Pooling
from ctssl_jax.optim import OptimConfig

PATH = "data/phantom"
SCANS_PATH = "data/phantom_scans"


def intensity() -> Intensity:
    """The default window, which grey data of one's own take as well, with the phantom's numbers."""
    return Intensity(mean=(0.28,), std=(0.256,))


def unknown_preset(preset: str, *known: str) -> ConfigError:
    """The error for a preset that a config does not have."""
    return ConfigError(f"no preset :{preset}; there is {', '.join(':' + name for name in known)}")


def pretrain_demo(method: Method, optim: OptimConfig) -> PretrainConfig:
    """Pre-training on the phantom: a minute on two CPU cores; views of 96 px or less."""
    return PretrainConfig(
        data=DataConfig(path=PATH, canvas=96),
        intensity=intensity(),
        encoder=EncoderConfig.of(method, depth=18),
        method=method,
        optim=optim,
        epochs=4.0,
        log_every=10,
        checkpoint_every=100,
        picture_every=35,
    )


def pretrain_smoke(method: Method, optim: OptimConfig) -> PretrainConfig:
    """A few steps, for tests; `method` has views of 64 px or less."""
    config = pretrain_demo(method, optim)
    config.data = DataConfig(path=PATH, canvas=64)
    config.batch_size, config.epochs, config.optim.warmup_epochs = 8, 0.3, 0.1
    config.log_every, config.checkpoint_every, config.picture_every = 2, 4, 4
    return config


def finetune_demo(config: FinetuneConfig) -> FinetuneConfig:
    """Lesion or no lesion on the phantom: half a minute at full size on two CPU cores."""
    config.task, config.intensity = "phantom", intensity()
    config.data = DataConfig(path=PATH, canvas=64)
    config.encoder = EncoderConfig(depth=18)
    config.method = Supervised(view=ViewGroup(size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0)))
    config.batch_size, config.epochs, config.freeze.epochs = 16, 5, 1
    config.optim.lr, config.checkpoint_every_epochs = 1e-3, 5
    return config


def cases_demo(config: FinetuneConfig, slices: int = 12) -> FinetuneConfig:
    """Scans of the phantom, of which two slices in 24 hold a lesion: minutes on two CPU cores."""
    config = finetune_demo(config)
    config.task, config.data = "phantom_scans", DataConfig(path=SCANS_PATH, canvas=64)
    view = ViewGroup(size=64, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    config.method = Cases(slices=slices, pooling=Pooling.ATTENTION, view=view)
    config.batch_size, config.epochs, config.freeze.epochs = 4, 10, 1
    return config


def cases_smoke(config: FinetuneConfig) -> FinetuneConfig:
    """A few steps, for tests."""
    config = cases_demo(config, slices=4)
    config.epochs, config.checkpoint_every_epochs = 2, 1
    return config


def finetune_smoke(config: FinetuneConfig) -> FinetuneConfig:
    """A few steps, for tests."""
    config = finetune_demo(config)
    config.batch_size, config.epochs, config.freeze.epochs = 8, 2, 1
    config.checkpoint_every_epochs, config.fraction = 1, 0.1
    return config
