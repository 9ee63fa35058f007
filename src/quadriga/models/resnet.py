"""Residual networks (He et al., CVPR 2016, arXiv:1512.03385)."""

from __future__ import annotations

import math
from typing import Literal, final

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from quadriga.contracts import ModelConfig, with_initial_values
from quadriga.errors import UserError
from quadriga.models.parts.batch_norm import BatchNorm
from quadriga.models.parts.initialise import Filler, initialise

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
"""Depth -> blocks of each stage (table 1 of the paper)."""


@final
class ResNetConfig(ModelConfig):
    """A residual network of 18, 34 or 50 layers."""

    image_px: int = Field(224, ge=1, le=2**14)
    """Side of the square images of a run; the network itself takes images of any size."""
    depth: Literal[18, 34, 50] = 50
    """Layers with weights. 18 and 34 have basic blocks, 50 has bottlenecks."""
    stem_width: int = Field(64, ge=1, le=2**20)
    """Channels of the stem and of the first stage's 3x3 convolutions; each stage doubles them."""
    stem: Literal["standard", "small"] = "standard"
    """A 7x7 convolution of stride 2 and a max pooling; or, for images of about 32 px, a 3x3
    convolution of stride 1 alone (Chen et al., 2020, SimCLR, appendix B.9)."""
    zero_init_residual: bool = False
    """Whether the last scale of each residual branch starts at 0, so that each block starts as its
    shortcut (Goyal et al., 2017, arXiv:1706.02677, section 5.1)."""
    channels: int = Field(3, ge=1, le=10_000)
    """Channels of an image."""

    @property
    def width(self) -> int:
        """Features of an image's vector: 512 for depth 18 and 34, 2048 for 50, at full width."""
        return 8 * self.stem_width * self.block.expansion

    @property
    def block(self) -> type[BasicBlock] | type[Bottleneck]:
        """The kind of block."""
        return Bottleneck if self.depth >= 50 else BasicBlock

    def build(self) -> ResNet:
        """Make the module; see `ModelConfig.build`."""
        return with_initial_values(lambda: ResNet(self), initialise)


@final
class Convolution(nn.Conv2d):
    """A square convolution without bias that keeps the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        """Make a convolution from `inputs` to `outputs` channels."""
        super().__init__(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)

    def fill(self, filler: Filler) -> None:
        """Draw from N(0, 2 / (outputs * kernel^2)) (He et al., 2015, arXiv:1502.01852, eq. 14)."""
        fan_out = self.out_channels * self.kernel_size[0] ** 2
        filler.normal("weight", math.sqrt(2 / fan_out))


@final
class Stem(nn.Module):
    """The layers before the blocks: convolution, normalisation, ReLU, optionally max pooling."""

    def __init__(self, config: ResNetConfig) -> None:
        """Make the stem of `config`."""
        super().__init__()
        self.pools = config.stem == "standard"
        kernel, stride = (7, 2) if self.pools else (3, 1)
        self.conv = Convolution(config.channels, config.stem_width, kernel, stride)
        self.norm = BatchNorm(config.stem_width)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """Return maps of a quarter of the images' side, or of their side for the small stem."""
        maps: Tensor = functional.relu(self.norm(self.conv(images)))
        return functional.max_pool2d(maps, 3, stride=2, padding=1) if self.pools else maps


@final
class Shortcut(nn.Module):
    """The 1x1 convolution beside a branch that changes the size of its input (option B)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        """Make a shortcut from `inputs` to `outputs` channels."""
        super().__init__()
        self.conv = Convolution(inputs, outputs, 1, stride)
        self.norm = BatchNorm(outputs)

    def forward(
        self, maps: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Map the block's input to the shape of its output."""
        output: Tensor = self.norm(self.conv(maps))
        return output


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions (figure 5 of the paper, left)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, last_scale: float) -> None:
        """Make a block.

        Args:
            inputs: Channels of the input.
            width: Channels of the 3x3 convolutions and of the output.
            stride: Stride of the first convolution and of the shortcut.
            last_scale: Initial scale of the branch.
        """
        super().__init__()
        self.conv1 = Convolution(inputs, width, 3, stride)
        self.norm1 = BatchNorm(width)
        self.conv2 = Convolution(width, width, 3)
        self.norm2 = BatchNorm(width, initial_scale=last_scale)
        self.shortcut = _shortcut(inputs, width, stride)

    def forward(
        self, maps: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Add the branch to the shortcut."""
        branch = functional.relu(self.norm1(self.conv1(maps)))
        branch = self.norm2(self.conv2(branch))
        return functional.relu(branch + self.shortcut(maps))


@final
class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution (figure 5 of the paper, right).

    The stride is in the 3x3 convolution ("version 1.5"), as in torchvision; the paper has it in the
    first 1x1.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, last_scale: float) -> None:
        """Make a block.

        Args:
            inputs: Channels of the input.
            width: Channels of the 3x3 convolution; the output has four times as many.
            stride: Stride of the 3x3 convolution and of the shortcut.
            last_scale: Initial scale of the branch.
        """
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = Convolution(inputs, width, 1)
        self.norm1 = BatchNorm(width)
        self.conv2 = Convolution(width, width, 3, stride)
        self.norm2 = BatchNorm(width)
        self.conv3 = Convolution(width, outputs, 1)
        self.norm3 = BatchNorm(outputs, initial_scale=last_scale)
        self.shortcut = _shortcut(inputs, outputs, stride)

    def forward(
        self, maps: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Add the branch to the shortcut."""
        branch = functional.relu(self.norm1(self.conv1(maps)))
        branch = functional.relu(self.norm2(self.conv2(branch)))
        branch = self.norm3(self.conv3(branch))
        return functional.relu(branch + self.shortcut(maps))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Return the map from a block's input to its output's shape; the identity if they are equal."""
    return nn.Identity() if stride == 1 and inputs == outputs else Shortcut(inputs, outputs, stride)


@final
class Stage(nn.Module):
    """Blocks of one width; the first halves the side of the maps if its stride is 2."""

    def __init__(self, config: ResNetConfig, index: int, inputs: int) -> None:
        """Make stage `index`, from 0, for maps of `inputs` channels."""
        super().__init__()
        width, last_scale = config.stem_width * 2**index, float(not config.zero_init_residual)
        self.outputs = width * config.block.expansion
        first = config.block(inputs, width, 1 if index == 0 else 2, last_scale)
        others = range(_BLOCKS[config.depth][index] - 1)
        self.blocks = nn.ModuleList(
            [first, *(config.block(self.outputs, width, 1, last_scale) for _ in others)]
        )

    def forward(
        self, maps: Float[Tensor, "batch inputs height width"]
    ) -> Float[Tensor, "batch outputs rows columns"]:
        """Apply the blocks."""
        for block in self.blocks:
            maps = block(maps)
        return maps


@final
class ResNet(nn.Module):
    """A stem and four stages of residual blocks.

    Parameters are named ``stem...`` and ``stages.<s>.blocks.<b>...``, with s and b from 0.
    """

    def __init__(self, config: ResNetConfig) -> None:
        """Make the module of `config` with undefined values."""
        super().__init__()
        self.config = config
        self.stem = Stem(config)
        self.stages = nn.ModuleList()
        channels = config.stem_width
        for index in range(len(_BLOCKS[config.depth])):
            stage = Stage(config, index, channels)
            self.stages.append(stage)
            channels = stage.outputs

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """Return the maps of the last stage, of 1/32 of the images' side (small stem: 1/8).

        Raises:
            UserError: The images have another number of channels.
        """
        if images.dim() != 4 or images.shape[1] != self.config.channels:
            raise UserError(
                f"images must have the model's {self.config.channels} channels, but are of shape "
                f"{tuple(images.shape)}; set model.channels to what the views make"
            )
        maps: Tensor = self.stem(images)
        for stage in self.stages:
            maps = stage(maps)
        return maps

    def features(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features"]:
        """Return one vector per image: the mean of the last maps over their positions."""
        maps: Tensor = self(images)
        return maps.mean(dim=(2, 3))
