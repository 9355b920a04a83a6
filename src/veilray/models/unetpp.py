"""U-Net++: a triangle of nodes X(i, j) with dense skips, and a head on each node of the top row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from veilray.errors import UsageError
from veilray.models.config import Inputs, ModelConfig, checked_config
from veilray.models.layers import (
    Block,
    Norm,
    Span,
    Window,
    block_span,
    conv_block,
    hull,
    noisy_image,
    pad_to_multiple,
    pool_span,
    upsample,
    upsample_span,
)


class UNetPlusPlus(nn.Module):
    """U-Net++ (Zhou et al. 2018): (N, C, H, W) -> (N, 1, H, W), any H and W; C is 1, or more where the noise's mean and
    std are inputs.

    Node X(i, 0) takes the max-pooled X(i-1, 0); node X(i, j) takes [X(i, 0), ..., X(i, j-1), X(i+1, j-1) upsampled],
    concatenated in this order, upsampled bilinearly with corners aligned. Level i has width 2^i channels. A 1x1 head
    sits on each of X(0, 1..depth-1); the last one gives the output, and an earlier one a smaller network. With
    `residual` each head's output is added to the input. `deep_supervision` is a wish to the training and changes no
    tensor.
    36,621,380 parameters at the defaults. Raises UsageError for a size or variant that does not exist.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        depth: int = 5,
        norm: Norm = "batch",
        block: Block = "conv-relu-conv-norm-relu",
        residual: bool = False,
        deep_supervision: bool = False,
        inputs: Inputs = "image",
    ) -> None:
        super().__init__()
        self.config: ModelConfig = checked_config(
            name="unetpp",
            width=width,
            depth=depth,
            norm=norm,
            block=block,
            residual=residual,
            deep_supervision=deep_supervision,
            inputs=inputs,
        )
        channels = [width * 2**level for level in range(depth)]
        taken = {(level, 0): before for level, before in enumerate([self.config.channels_in, *channels[:-1]])}
        taken |= {(i, j): j * channels[i] + channels[i + 1] for j in range(1, depth) for i in range(depth - j)}
        self.nodes = nn.ModuleDict(
            {_name(i, j): conv_block(count, channels[i], norm=norm, block=block) for (i, j), count in taken.items()}
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, kernel_size=1) for _ in range(depth - 1))

    @property
    def stride(self) -> int:
        """Pixels of the input to one pixel of the lowest level; inputs are padded to its multiples."""
        return 1 << (self.config.depth - 1)

    @property
    def receptive_radius(self) -> int:
        """Distance in pixels, along an axis, beyond which no input pixel reaches an output pixel by convolution.

        An upper bound for any image size: where exactly an aligned-corners upsampling reads depends on the size.
        """
        return max(_radius(pixel, self.config.depth) for pixel in range(self.stride))

    @property
    def has_global_statistics(self) -> bool:
        """Whether every output pixel depends on the whole image: group normalisation averages over all of it.

        The upsampling depends on the size of the whole image too, but not on its pixels: `forward_tiles` is told it.
        """
        return self.config.norm == "group"

    def forward(self, x: Tensor, *, head: int | None = None) -> Tensor:
        """(N, C, H, W): noisy image about [0, 1], then maps of the inputs -> (N, 1, H, W), not clamped.

        `head` k in 1..depth-1 takes the output at X(0, k) and computes only the nodes X(i, j) with i + j <= k; the last
        head is the default. Raises UsageError for a head that does not exist.
        """
        last = self._checked(head)
        return self._outputs(x, last=last, heads=[last])[0]

    def pruned(self, head: int) -> UNetPlusPlus:
        """The smaller U-Net++ of depth `head` + 1 that ends in X(0, head), with copies of this one's tensors.

        It gives what `forward(x, head=head)` gives wherever the sides of x are multiples of this network's stride; it
        pads other images less. Raises UsageError for a head that does not exist.
        """
        depth = self._checked(head) + 1
        config = self.config.model_copy(update={"depth": depth, "deep_supervision": False})
        with torch.device("meta"):
            smaller = UNetPlusPlus(**config.options())
        state = self.state_dict()
        smaller.load_state_dict({name: state[name].clone() for name in smaller.state_dict()}, assign=True)
        return smaller.train(self.training)

    def forward_heads(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) -> depth - 1 outputs (N, 1, H, W), of X(0, 1), X(0, 2), ...: for deep supervision."""
        last = len(self.heads)
        return self._outputs(x, last=last, heads=list(range(1, last + 1)))

    def forward_tiles(self, x: Tensor, window: Window) -> Tensor:
        """What `forward` gives for tiles of an image, upsampled where `window` says that they lie in the whole.

        Each tile's sides are multiples of the stride. What lies within the receptive radius of a tile's border differs,
        unless that border is the image's.
        """
        last = len(self.heads)
        return self._outputs(x, last=last, heads=[last], window=window)[0]

    def _checked(self, head: int | None) -> int:
        count = len(self.heads)
        if head is not None and not 1 <= head <= count:
            raise UsageError(f"head {head} does not exist: this U-Net++ has heads 1 to {count}")
        return count if head is None else head

    def _outputs(self, x: Tensor, *, last: int, heads: list[int], window: Window | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        row = self._top_row(pad_to_multiple(x, self.stride), last=last, window=window)
        outputs = [self.heads[head - 1](row[head])[..., :height, :width] for head in heads]
        return [noisy_image(x) + output for output in outputs] if self.config.residual else outputs

    def _top_row(self, x: Tensor, *, last: int, window: Window | None) -> list[Tensor]:
        """X(0, 0), ..., X(0, last), each (N, width, H, W)."""
        rows: list[list[Tensor]] = []
        for i in range(last + 1):
            x = self.nodes[_name(i, 0)](x if i == 0 else F.max_pool2d(x, 2))
            rows.append([x])
        for j in range(1, last + 1):
            for i in range(last - j + 1):
                below = upsample(rows[i + 1][j - 1], window=window, level=i + 1)
                rows[i].append(self.nodes[_name(i, j)](torch.cat([*rows[i], below], dim=1)))
        return rows[0]


def _name(i: int, j: int) -> str:
    return f"x{i}_{j}"


def _radius(pixel: int, depth: int) -> int:
    """How far from output pixel `pixel` the input pixels lie that it depends on."""
    asked: dict[tuple[int, int], Span] = {(0, depth - 1): (pixel, pixel)}  # of each node, by those after it

    def ask(node: tuple[int, int], span: Span) -> None:
        asked[node] = hull(asked.get(node, span), span)

    for j in reversed(range(1, depth)):
        for i in range(depth - j):
            if (i, j) in asked:
                span = block_span(asked[i, j])
                for earlier in range(j):
                    ask((i, earlier), span)
                ask((i + 1, j - 1), upsample_span(span))
    for i in reversed(range(1, depth)):
        ask((i - 1, 0), pool_span(block_span(asked[i, 0])))
    span = block_span(asked[0, 0])
    return max(pixel - span[0], span[1] - pixel)
