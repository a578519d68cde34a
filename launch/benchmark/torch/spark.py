"""SparK in plain PyTorch, to measure ours against: Tian et al. 2023, §3, written anew.

The encoder is timm's ResNet, computed densely. Names of parameters are those of
keyu-tian/SparK@a63e386, which `interop.names` knows; the encoder's stand behind `encoder.`.
Whoever imports this module needs PyTorch: see `torch_steps`.
"""

from functools import partial
from typing import Any

import timm
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from ctssl_jax.config import EncoderConfig
from ctssl_jax.nn.decoder import BLOCKS
from ctssl_jax.nn.resnet import STRIDE


class Visible:
    """Where the visible patches of the batch at hand are; the sparse layers of a network share it.

    What they ask for is found once for each resolution, not at each layer.
    """

    def __init__(self) -> None:
        self._masks: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}

    def show(self, mask: Bool[Tensor, "b f f"]) -> None:
        """Takes the mask of a new batch, True = visible."""
        self._masks, self._rows = {mask.shape[-1]: mask}, {}

    def mask(self, side: int) -> Bool[Tensor, "b 1 h w"]:
        """The mask repeated to maps of `side` x `side`."""
        if side not in self._masks:
            coarsest = self._masks[min(self._masks)]
            times = side // coarsest.shape[-1]
            self._masks[side] = coarsest.repeat_interleave(times, 1).repeat_interleave(times, 2)
        return self._masks[side].unsqueeze(1)

    def rows(self, side: int) -> Int[Tensor, " n"]:
        """The visible positions' numbers among all of such a map, batch and rows outside."""
        if side not in self._rows:
            self._rows[side] = self.mask(side).flatten().nonzero().squeeze(1)
        return self._rows[side]


class SparseBatchNorm(nn.BatchNorm1d):
    """BatchNorm of the visible positions; what is hidden becomes zero, not the bias.

    It also does what a sparse convolution before it would have to: a dense one leaks into hidden
    positions, and here they end.
    """

    def __init__(self, features: int, *, visible: Visible, **options: Any):
        super().__init__(features, **options)
        self.visible = visible

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Returns the normalised map, channels last in memory."""
        b, c, h, w = x.shape
        rows = self.visible.rows(h)
        flat = x.permute(0, 2, 3, 1).reshape(-1, c)
        normalised = super().forward(flat.index_select(0, rows))
        spread = normalised.new_zeros(flat.shape).index_copy(0, rows, normalised)
        return spread.view(b, h, w, c).permute(0, 3, 1, 2)


class SparseMaxPool(nn.MaxPool2d):
    """Max-pooling whose hidden outputs are zero. Its inputs come from a ReLU: zeros never win."""

    def __init__(self, visible: Visible):
        super().__init__(kernel_size=3, stride=2, padding=1)
        self.visible = visible

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Returns the pooled map."""
        y = super().forward(x)
        return y * self.visible.mask(y.shape[-1])


class UpBlock(nn.Module):
    """A block of the decoder: twice the resolution, then two convolutions with BatchNorm."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.up_sample = nn.ConvTranspose2d(inputs, inputs, 4, stride=2, padding=1)
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU6(inplace=True),
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h2 w2"]:
        """Returns the map at twice the resolution."""
        return self.conv(self.up_sample(x))


class Decoder(nn.Module):
    """Five blocks, to the first four of which a densified map is added; then the pixels."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        widths = [width >> level for level in range(BLOCKS + 1)]
        self.dec = nn.ModuleList(map(UpBlock, widths[:-1], widths[1:]))
        self.proj = nn.Conv2d(widths[-1], channels, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.ConvTranspose2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, levels: list[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        """Returns the reconstruction; `levels` are densified maps, the coarsest first."""
        x = self.dec[0](levels[0])
        for block, level in zip(self.dec[1:-1], levels[1:], strict=True):
            x = block(x + level)
        return self.proj(self.dec[-1](x))


def resnet(config: EncoderConfig, channels: int, **options: Any) -> Any:
    """timm's ResNet without a classifier, initialised as ours; `options` are timm's."""
    return timm.create_model(
        f"resnet{config.depth}",
        in_chans=channels,
        num_classes=0,
        drop_path_rate=config.drop_path_rate,
        zero_init_last=config.zero_init_residual,
        **options,
    )


class SparKNetwork(nn.Module):
    """Sparse encoder, densification and decoder; `width` is of the decoder's coarsest level."""

    def __init__(self, config: EncoderConfig, *, channels: int, width: int):
        super().__init__()
        self.visible = Visible()
        norm = partial(SparseBatchNorm, visible=self.visible)
        self.encoder: Any = resnet(config, channels, norm_layer=norm)
        self.encoder.maxpool = SparseMaxPool(self.visible)
        widths = [info["num_chs"] for info in reversed(self.encoder.feature_info[1:])]
        self.densify_norms = nn.ModuleList(map(norm, widths))
        self.mask_tokens = nn.ParameterList(torch.zeros(1, c, 1, 1) for c in widths)
        for token in self.mask_tokens:
            nn.init.trunc_normal_(token, std=0.02, a=-0.02, b=0.02)
        self.densify_projs = nn.ModuleList(
            nn.Identity()
            if level == 0 and c == width
            else nn.Conv2d(c, width >> level, 3 if level else 1, padding=1 if level else 0)
            for level, c in enumerate(widths)
        )
        self.dense_decoder = Decoder(width, channels)

    def forward(
        self, image: Float[Tensor, "b c h w"], mask: Bool[Tensor, "b f f"]
    ) -> Float[Tensor, "b c h w"]:
        """Returns the reconstruction of the whole image, in normalised-patch space."""
        self.visible.show(mask)
        stages = self.encoder.forward_intermediates(
            image * self.visible.mask(image.shape[-1]),
            indices=[1, 2, 3, 4],
            intermediates_only=True,
        )
        levels = []
        for stage, norm, token, project in zip(
            reversed(stages),
            self.densify_norms,
            self.mask_tokens,
            self.densify_projs,
            strict=True,
        ):
            filled = torch.where(self.visible.mask(stage.shape[-1]), norm(stage), token)
            levels.append(project(filled))
        return self.dense_decoder(levels)


def patchify(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
    """Non-overlapping 32x32 patches, row by row."""
    return functional.unfold(image, STRIDE, stride=STRIDE).transpose(1, 2)


def reconstruction_loss(
    image: Float[Tensor, "b c h w"],
    prediction: Float[Tensor, "b c h w"],
    mask: Bool[Tensor, "b f f"],
) -> Float[Tensor, ""]:
    """Mean squared error on hidden patches, against patches normalised by their own statistics."""
    hidden = ~mask.flatten(1)
    target = patchify(image)[hidden]
    variance, mean = torch.var_mean(target, dim=1, keepdim=True)
    target = (target - mean) / (variance + 1e-6).sqrt()
    return functional.mse_loss(patchify(prediction)[hidden], target)


def random_mask(batch: int, grid: int, visible: int) -> Bool[Tensor, "b f f"]:
    """So many visible patches in every image, uniformly without replacement."""
    shown = torch.rand(batch, grid * grid).argsort(dim=1)[:, :visible]
    mask = torch.zeros(batch, grid * grid, dtype=torch.bool)
    return mask.scatter_(1, shown, True).view(batch, grid, grid)
