"""EfficientNet-Lite0 as a trunk: features of several strides, with timm's parameter names.

Gives the same values as timm's ``tf_efficientnet_lite0`` without importing timm, which takes longer
than judging a photograph. Stages after the last tap are kept, as checkpoints hold them, but not
run.

Source: arXiv:1905.11946 and TensorFlow's EfficientNet-Lite (ReLU6, no squeeze and excitation).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

NAME = "tf_efficientnet_lite0"
MEAN = STD = (0.5, 0.5, 0.5)
# Blocks, depthwise kernel size, stride, channels; each stage except the first expands by 6.
_STAGES = ((1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112),
           (4, 5, 2, 192), (1, 3, 1, 320))  # fmt: skip
_STEM = 32
_WIDEN = 6
# The last stage of each stride: 2, 4, 8, 16, 32.
_TAPS = (0, 1, 2, 4, 6)


class _Conv(nn.Conv2d):
    """Convolution without bias, padded like TensorFlow: an odd pixel is added at the end."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1):
        # Symmetric if the stride is 1; otherwise it depends on the input's size.
        padding = side // 2 if stride == 1 else 0
        super().__init__(inputs, outputs, side, stride, padding, groups=groups, bias=False)

    def forward(self, x: torch.Tensor, norm: nn.BatchNorm2d | None = None) -> torch.Tensor:
        """Convolve; with ``norm`` what it makes of that with fixed statistics, in one pass."""
        stride, side = self.stride[0], self.kernel_size[0]
        if stride > 1:
            height, width = (
                max((math.ceil(size / stride) - 1) * stride + side - size, 0)
                for size in x.shape[-2:]
            )
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        if norm is None:
            return super().forward(x)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        bias = norm.bias - norm.running_mean * scale
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Normed(nn.Module):
    """Convolutions with batch norm behind them."""

    scales_weights = False
    """Whether evaluation without gradients scales weights in the place of features."""

    def _normed(self, conv: _Conv, norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
        if self.scales_weights and not (norm.training or torch.is_grad_enabled()):
            return conv(x, norm)
        return norm(conv(x))


class _Separable(_Normed):
    """Depthwise and pointwise convolution."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = _Conv(inputs, inputs, side, stride, groups=inputs)
        self.bn1 = _norm(inputs)
        self.conv_pw = _Conv(inputs, outputs, 1)
        self.bn2 = _norm(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._normed(self.conv_dw, self.bn1, x), inplace=True)
        return self._normed(self.conv_pw, self.bn2, y)


class _Inverted(_Normed):
    """Inverted residual: expand, depthwise convolution, project; residual if the shapes match."""

    def __init__(self, inputs: int, outputs: int, side: int, stride: int) -> None:
        super().__init__()
        wide = inputs * _WIDEN
        self.conv_pw = _Conv(inputs, wide, 1)
        self.bn1 = _norm(wide)
        self.conv_dw = _Conv(wide, wide, side, stride, groups=wide)
        self.bn2 = _norm(wide)
        self.conv_pwl = _Conv(wide, outputs, 1)
        self.bn3 = _norm(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu6(self._normed(self.conv_pw, self.bn1, x), inplace=True)
        y = F.relu6(self._normed(self.conv_dw, self.bn2, y), inplace=True)
        y = self._normed(self.conv_pwl, self.bn3, y)
        return y + x if self.adds else y


class EfficientNetLite0(_Normed):
    """The trunk, with newly initialised weights.

    Args:
        taps: Indices of the strides to return: 0 to 4 for 2, 4, 8, 16 and 32.

    Attributes:
        widths: Channels of each tap.

    Raises:
        ValueError: There is no such tap.
    """

    def __init__(self, taps: Sequence[int]) -> None:
        super().__init__()
        if not all(0 <= tap < len(_TAPS) for tap in taps):
            raise ValueError(f"{NAME} has the taps 0 to {len(_TAPS) - 1}, got {tuple(taps)}")
        self._stages = [_TAPS[tap] for tap in taps]
        self.widths = tuple(_STAGES[stage][-1] for stage in self._stages)
        self.conv_stem = _Conv(3, _STEM, 3, 2)
        self.bn1 = _norm(_STEM)
        self.blocks, inputs = nn.Sequential(), _STEM
        for stage, (count, side, stride, outputs) in enumerate(_STAGES):
            blocks = nn.Sequential()
            for number in range(count):
                kind = _Inverted if stage else _Separable
                blocks.append(kind(inputs, outputs, side, 1 if number else stride))
                inputs = outputs
            self.blocks.append(blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan_out))

    def scale_weights(self) -> None:
        """Apply batch norm to the convolutions' weights, in each pass of evaluation without
        gradients: two thirds of the time on a CPU, for the same numbers. Not for parameters that
        DeepSpeed has partitioned, as it gathers a module's own for its call only."""
        for module in self.modules():
            if isinstance(module, _Normed):
                module.scales_weights = True

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Features (B, C_i, h_i, w_i) of each tap, for normalised images (B, 3, H, W)."""
        x = F.relu6(self._normed(self.conv_stem, self.bn1, x), inplace=True)
        features = []
        for blocks in self.blocks[: self._stages[-1] + 1]:
            x = blocks(x)
            features.append(x)
        return [features[stage] for stage in self._stages]
