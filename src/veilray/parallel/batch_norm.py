"""Batch normalisation over the images of all ranks, on any device and backend.

torch's own SyncBatchNorm refuses tensors on the CPU. Here every rank tells the others how many values of a channel it
holds, their mean and their summed squared deviation; these are merged without cancellation (Chan, Golub and LeVeque,
"Algorithms for computing the sample variance", 1983, equation 1.5), in float64 and in the order of ranks, so that every
rank has the same statistics to the bit. Ranks may hold different numbers of images, or none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from veilray.parallel.group import Group

Network = TypeVar("Network", bound=nn.Module)
Exchange = Callable[[Tensor], Tensor]
"""Adds up a tensor over all ranks, in place, and returns it."""
_CPU_VALUES = 1 << 20
"""Values that a CPU computes at a time: as float32 they stay in its caches."""


def synchronised(model: Network, group: Group) -> Network:
    """Let every nn.BatchNorm2d of a model normalise over the images of all ranks; returns the model, changed in place.

    Parameters, buffers and their names stay, so that weights and checkpoints fit either way. In a group of one rank
    nothing changes. Raises ValueError for layers without weights or running statistics, which Veilray does not build.
    """
    if group.world_size == 1:
        return model
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, SynchronisedBatchNorm2d(child, group))
    return model


def exchanged_bytes(channels: int, *, world_size: int) -> tuple[int, int]:
    """Bytes that a layer sums over all ranks in a forward and in a backward pass, where it computes in float32.

    Forward, the count, means and deviations of every rank in float64, so that they grow with the ranks; backward, two
    sums a channel.
    """
    return 8 * world_size * (1 + 2 * channels), 4 * 2 * channels


class SynchronisedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics in training are those of the images of all ranks; takes over `layer`'s tensors.

    (N, C, H, W) -> (N, C, H, W), float16, bfloat16, float32 or float64; N may differ between ranks and may be 0. All
    ranks must run forward, and backward, together. Raises ValueError where all ranks together hold one value a channel.
    """

    def __init__(self, layer: nn.BatchNorm2d, group: Group) -> None:
        if not layer.affine or not layer.track_running_stats:
            raise ValueError("synchronised batch normalisation needs weights and running statistics")
        super().__init__(layer.num_features, layer.eps, layer.momentum)
        self._parameters.update(layer._parameters)
        self._buffers.update(layer._buffers)
        self.train(layer.training)
        self._group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the statistics of all ranks' images in training, by the running ones otherwise."""
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        count, mean, variance, unbiased = self._statistics(x.detach())
        self._follow(mean, unbiased)
        return _normalise(x, self.weight, self.bias, mean, variance, count, self.eps, self._group.sum_)

    @torch.no_grad()
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values a channel, float64; mean, variance and unbiased variance of each channel over all ranks."""
        kind = torch.promote_types(x.dtype, torch.float32)
        rows = x.new_zeros(self._group.world_size, 1 + 2 * self.num_features, dtype=torch.float64)
        count = x.numel() // self.num_features
        if count:
            # The scratch statistics are there for their precision: without them half-precision images get half's.
            scratch = x.new_zeros(2, self.num_features, dtype=kind)
            mean, variance = torch.batch_norm_update_stats(x, scratch[0], scratch[1], 0.0)
            rows[self._group.rank] = torch.cat([mean.new_full([1], count), mean, variance * count])
        # Each row is one rank's and zero elsewhere, so that the sum is a gathering, exact to the bit.
        counts, means, deviations = torch.tensor_split(self._group.sum_(rows), [1, 1 + self.num_features], dim=1)
        total = counts.sum()
        if count <= 1 and float(total) <= 1:
            raise ValueError(f"one value a channel has no variance; got an input of size {tuple(x.shape)} on all ranks")
        mean = (counts * means).sum(dim=0) / total
        deviation = (deviations + counts * (means - mean).square()).sum(dim=0)
        variance, unbiased = deviation / total, deviation / (total - 1)
        return total, mean.to(kind), variance.to(kind), unbiased.to(kind)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of the batch, as nn.BatchNorm2d does."""
        assert self.running_mean is not None  # checked when it was built
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(variance.to(self.running_var.dtype), share)


class _Normalise(torch.autograd.Function):
    """y = weight * (x - mean) / sqrt(variance + eps) + bias, whose mean and variance depend on all ranks' x."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor,
        variance: Tensor,
        count: Tensor,
        eps: float,
        exchange: Exchange,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.eps, ctx.exchange = eps, exchange
        if not x.numel():
            return torch.empty_like(x)
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With u = (x - mean) / s and s = sqrt(variance + eps), over the n values of a channel on all ranks,
        dx = weight / s * (dy - sum(dy) / n - u * sum(dy * u) / n).
        """
        x, weight, mean, variance, count = ctx.saved_tensors
        if x.numel():
            # As in evaluation, where the statistics are constants, this gives the sums of this rank alone. The batch's
            # own statistics are not there: empty tensors say so to the kernels of CPU and CUDA, None only to the CPU's.
            none = mean.new_empty(0)
            _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
                dy, x, weight, mean, variance, none, none, False, ctx.eps, [False, True, True]
            )
        else:
            grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(weight)
        sums = ctx.exchange(torch.stack([grad_bias, grad_weight]).to(mean.dtype)) / count.to(mean.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None, None, None
        inverse = torch.rsqrt(variance + ctx.eps)
        scale = weight * inverse
        slope = -scale * inverse * sums[1]
        offset = -scale * sums[0] - slope * mean
        dx = _combined(dy, x, *(factor.view(1, -1, 1, 1) for factor in (scale, slope, offset)))
        return dx, grad_weight, grad_bias, None, None, None, None, None


def _combined(dy: Tensor, x: Tensor, scale: Tensor, slope: Tensor, offset: Tensor) -> Tensor:
    """scale * dy + slope * x + offset of x's dtype, computed in that of the factors and rounded once."""
    if x.dtype == scale.dtype or x.device.type != "cpu" or not x.numel():
        return torch.addcmul(offset, dy, scale).addcmul_(x, slope).to(x.dtype)
    # A few images at a time: a tensor of float32 as large as x would be fetched from memory and brought back.
    at_once = max(1, _CPU_VALUES // x[0].numel())
    dx = torch.empty_like(x)
    parts = zip(*(torch.split(tensor, at_once) for tensor in (dx, dy, x)), strict=True)
    for part, from_dy, from_x in parts:
        part.copy_(torch.addcmul(offset, from_dy, scale).addcmul_(from_x, slope))
    return dx


def _normalise(*arguments: Any) -> Tensor:
    result: Tensor = _Normalise.apply(*arguments)  # type: ignore[no-untyped-call]
    return result
