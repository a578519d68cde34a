"""The methods in PyTorch, to measure ours against: timm's ResNet, lightly's heads, losses and EMA.

Each is what our method of the same name computes in its first epoch, but for three things. MoCo's
BatchNorm is plain, over the whole batch, so that nothing needs to be shuffled: ours takes its
statistics in groups. MoCo's keys of a query's own slice are negatives: ours hides them. SwAV's
prototypes are never frozen, which saves ours no work either.
Whoever imports this module needs PyTorch: see `torch_steps`.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float
from lightly.loss import NegativeCosineSimilarity, NTXentLoss, SwaVLoss
from lightly.models.modules.heads import ProjectionHead
from lightly.models.modules.memory_bank import MemoryBankModule
from lightly.models.utils import deactivate_requires_grad, normalize_weight, update_momentum
from timm.optim import Lamb, Lars
from torch import Tensor, nn
from torch.nn.functional import normalize

from ctssl_jax import methods
from ctssl_jax.config import PretrainConfig
from ctssl_jax.errors import ConfigError
from ctssl_jax.optim import OptimConfig, OptimizerName
from launch.benchmark.torch.spark import SparKNetwork, random_mask, reconstruction_loss, resnet

Views = tuple[Tensor, ...]  # of each group, all views of the batch, one view after the other


class TorchMethod(nn.Module):
    """What a step trains: views -> loss, and what follows the optimizer."""

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns the loss."""
        raise NotImplementedError

    def after_update(self) -> None:
        """Nothing, unless a method says otherwise."""


class SparK(TorchMethod):
    """A fresh mask for each image and step."""

    def __init__(self, method: methods.SparK, network: SparKNetwork):
        super().__init__()
        self.method = method
        self.network = network

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns the reconstruction loss."""
        (image,) = views
        mask = random_mask(len(image), self.method.grid, self.method.visible)
        return reconstruction_loss(image, self.network(image, mask), mask)


class MoCo(TorchMethod):
    """Query and key encoder; lightly's loss keeps the queue."""

    def __init__(self, method: methods.MoCo, encoder: Any):
        super().__init__()
        head = _mlp(encoder.num_features, method.hidden, method.features)
        self.momentum = method.momentum
        self.student = nn.Sequential(encoder, head)
        self.teacher = _teacher(self.student)
        size = (method.queue_size, method.features)
        self.criterion = NTXentLoss(method.temperature, memory_bank_size=size)

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns InfoNCE against the queue as it was."""
        query, key = views[0].chunk(2)
        with torch.no_grad():
            keys = self.teacher(key)
        return self.criterion(self.student(query), keys)

    def after_update(self) -> None:
        """The key encoder follows."""
        update_momentum(self.student, self.teacher, self.momentum)


class SwAV(TorchMethod):
    """The encoder runs once for each resolution, projector and prototypes once."""

    def __init__(self, method: methods.SwAV, encoder: Any):
        super().__init__()
        self.method = method
        self.encoder = encoder
        self.projector = _mlp(encoder.num_features, method.hidden, method.features, batch_norm=True)
        self.prototypes = nn.Linear(method.features, method.prototypes, bias=False)
        self.criterion = SwaVLoss(method.temperature, method.sinkhorn_iterations, method.epsilon)
        size = (method.queue_size, method.features) if method.queue_size else 0
        self.queues = nn.ModuleList(MemoryBankModule(size) for _ in range(method.view.count))
        self.queued = 0
        normalize_weight(self.prototypes.weight)

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns the swapped prediction's loss."""
        count = sum(group.count for group in self.method.views)
        features = torch.cat([self.encoder(x) for x in views])
        z = normalize(self.projector(features), dim=1)
        known = z.chunk(count)[: len(self.queues)]
        queued = self._queued(known)
        scores = self.prototypes(z).chunk(count)
        high, low = scores[: len(self.queues)], scores[len(self.queues) :]
        return self.criterion(list(high), list(low), queued).squeeze()

    @torch.no_grad()
    def _queued(self, known: tuple[Tensor, ...]) -> list[Tensor] | None:
        """Scores of the queue as it was, if it is full and due; the batch enters it."""
        full = self.queued >= self.method.queue_size > 0
        banks = [queue(z, update=True)[1] for queue, z in zip(self.queues, known, strict=True)]
        self.queued += len(known[0])
        if not full or self.method.queue_epoch:  # the steps are those of the first epoch
            return None
        return [self.prototypes(bank.t()) for bank in banks]

    def after_update(self) -> None:
        """Prototypes are brought back to length 1."""
        normalize_weight(self.prototypes.weight)


class BYOL(TorchMethod):
    """Each view runs for itself, with batch statistics of its own, through both networks."""

    def __init__(self, method: methods.BYOL, encoder: Any):
        super().__init__()
        self.momentum = method.tau
        widths = method.hidden, method.features
        self.student = nn.Sequential(encoder, _mlp(encoder.num_features, *widths, batch_norm=True))
        self.predictor = _mlp(method.features, *widths, batch_norm=True)
        self.teacher = _teacher(self.student)
        self.criterion = NegativeCosineSimilarity()

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns the sum over both directions, 0 to 8."""
        first, second = (self.predictor(self.student(x)) for x in views)
        with torch.no_grad():
            first_target, second_target = (self.teacher(x) for x in views)
        return 4 + 2 * (self.criterion(first, second_target) + self.criterion(second, first_target))

    def after_update(self) -> None:
        """The target follows."""
        update_momentum(self.student, self.teacher, self.momentum)


class SimCLR(TorchMethod):
    """Both views in one batch."""

    def __init__(self, method: methods.SimCLR, encoder: Any):
        super().__init__()
        head = _mlp(encoder.num_features, method.hidden, method.features, batch_norm=True)
        self.student = nn.Sequential(encoder, head)
        self.criterion = NTXentLoss(method.temperature)

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns the normalised-temperature cross-entropy."""
        return self.criterion(*self.student(views[0]).chunk(2))


class Supervised(TorchMethod):
    """A linear layer on the encoder's features; the labels are as many of each class."""

    def __init__(self, method: methods.Supervised, encoder: Any):
        super().__init__()
        self.classes = method.classes
        self.network = nn.Sequential(encoder, nn.Linear(encoder.num_features, method.classes))
        self.criterion = nn.CrossEntropyLoss(
            torch.tensor(method.class_weights or [1.0] * method.classes)
        )

    def forward(self, views: Views) -> Float[Tensor, ""]:
        """Returns the cross-entropy."""
        (image,) = views
        return self.criterion(self.network(image), torch.arange(len(image)) % self.classes)


def build(config: PretrainConfig) -> TorchMethod:
    """The method with fresh weights, in training mode.

    Raises:
      ConfigError: there is no PyTorch step of this method.
    """
    method, channels = config.method, config.intensity.channels
    if isinstance(method, methods.SparK):
        network = SparKNetwork(config.encoder, channels=channels, width=method.decoder_width)
        return SparK(method, network)
    if type(method) not in ON_ENCODER:
        raise ConfigError(f"{type(method).__name__}: there is no PyTorch step of it to measure")
    return ON_ENCODER[type(method)](method, resnet(config.encoder, channels))


ON_ENCODER: dict[type, Any] = {
    methods.MoCo: MoCo,
    methods.SwAV: SwAV,
    methods.BYOL: BYOL,
    methods.SimCLR: SimCLR,
    methods.Supervised: Supervised,
}


def _mlp(inputs: int, hidden: int, features: int, *, batch_norm: bool = False) -> ProjectionHead:
    """As `nn.heads.MLP`: a hidden layer with a BatchNorm has no bias; hidden 0 leaves it out."""
    if not hidden:
        return ProjectionHead([(inputs, features, None, None)])
    norm = nn.BatchNorm1d(hidden) if batch_norm else None
    return ProjectionHead([(inputs, hidden, norm, nn.ReLU()), (hidden, features, None, None)])


def _teacher(student: nn.Module) -> nn.Module:
    """A copy that no gradient reaches."""
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    return teacher


def make_optimizer(config: OptimConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer at its peak rate and first weight decay; clipping is the step's."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[not config.exclude_1d or _decays(name, parameter)].append(parameter)
    decays = {True: config.weight_decay, False: 0.0}
    parameters: Any = [
        {"params": members, "weight_decay": decays[decayed]}
        for decayed, members in groups.items()
        if members
    ]
    adam: dict[str, Any] = {"lr": config.lr, "betas": (config.b1, config.b2), "eps": config.eps}
    momentum: dict[str, Any] = {"lr": config.lr, "momentum": config.momentum}
    match config.name:
        case OptimizerName.LAMB:
            return Lamb(parameters, **adam, max_grad_norm=None, foreach=True)
        case OptimizerName.LARS:
            trust = {"trust_coeff": config.trust_coefficient, "eps": config.eps}
            return Lars(parameters, **momentum, **trust, foreach=True)
        case OptimizerName.SGD:
            return torch.optim.SGD(parameters, **momentum, fused=True)
        case OptimizerName.ADAM:
            return torch.optim.Adam(parameters, **adam, fused=True)
        case OptimizerName.ADAMW:
            return torch.optim.AdamW(parameters, **adam, fused=True)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """As `optim.decay_mask`."""
    return parameter.ndim > 1 and not {"mask_tokens", "prototypes"} & set(name.split("."))


def random_views(config: PretrainConfig, layout: torch.memory_format) -> Views:
    """Views as the network gets them, but of nothing: standard normal."""
    batch, channels = config.batch_size, config.intensity.channels
    return tuple(
        torch.randn(group.count * batch, channels, group.size, group.size).to(memory_format=layout)
        for group in config.method.views
    )
