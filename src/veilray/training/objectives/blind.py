"""Objectives that compare a network's output with pixels that it has not seen, through the clamp's mean map g.

Noisy pixels are independent given x, and E[y | x] = g(x) (`obfuscation.mean_map`). So a network that has not seen pixel
i, and whose output there goes through g, is drawn to
    g(f_i) = E[g(x_i) | what it saw],   f_i = g^-1(E[g(x_i) | what it saw]):
it estimates g(x), with g inverted at the end, and the inversion is in the network: its output is an estimate of x, and
nothing is left to invert at inference. All hold for clamped releases and for others, where g(x) is x + mean.

`blind_spot` (Krull, Buchholz and Jug, "Noise2Void", CVPR 2019): one pixel in SPACING is replaced by one of its eight
neighbours, and the loss is taken there alone,
    mean over masked i of (g(f_i(masked y)) - y_i)^2.
At inference the network sees every pixel, of which it has learnt to make little use.

`neighbor2neighbor` (Huang, Li, Jia, Lu and Liu, CVPR 2021, equation 6): of each square of 2 x 2 pixels two neighbours
go to two images of half the size, u and v,
    mean (g(f(u)) - v)^2 + GAMMA mean (g(f(u)) - v - (U g(f(y)) - V g(f(y))))^2,
where U and V take the same pixels from the estimate of the whole image, without a gradient; the second term makes up
for u and v not showing the same. What counts is its gradient, not its value: a network that returns what it is given
makes the second term 0 and the first about 2 std^2, a perfect one makes each about std^2. So epochs are compared by the
first alone.

`noise2noise` (Lehtinen et al., ICML 2018): a second release of the same images, with noise of its own,
    mean (g(f(y)) - y')^2.
The first and the last differ from an error of g(f) by the variance of a noisy pixel, which does not depend on f:
`noise2noise` from that of the network as it is used, `blind_spot` from that of the network on masked images, where it
is told less. `neighbor2neighbor` is the error at half the resolution, and its second term. So what `blind_spot` and
`neighbor2neighbor` find on validation images ranks networks of one kind, and is no estimate of the error at inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from veilray.obfuscation.mean_map import clamped_mean
from veilray.training.objectives.network import Network

SPACING = 16
"""Pixels to one that is masked."""
DIRECTIONS = 8
"""Neighbours of a pixel; ways to take two adjacent pixels, in order, from a square of 2 x 2."""
GAMMA = 1.0
_NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
# Places in a square as row, column; each line is (place in u, place in v).
_PAIRS = (
    ((0, 0), (0, 1)),
    ((0, 1), (0, 0)),
    ((1, 0), (1, 1)),
    ((1, 1), (1, 0)),
    ((0, 0), (1, 0)),
    ((1, 0), (0, 0)),
    ((0, 1), (1, 1)),
    ((1, 1), (0, 1)),
)


def blind_spot_losses(network: Network, noisy: Tensor, known: Tensor, *, places: Tensor, clip: bool) -> Tensor:
    """The squared error of each image at its masked pixels, in units of g: (N,).

    `places`: (N, 1, H, W), whole numbers, evenly from 0 to SPACING * DIRECTIONS - 1: below DIRECTIONS a pixel is
    masked, by that neighbour.
    """
    masked = places < DIRECTIONS
    errors = (_expected(network(_replaced(noisy, places), known), known, clip=clip) - noisy).square() * masked
    counts = masked.sum(dim=(1, 2, 3)).clamp(min=1)
    return errors.sum(dim=(1, 2, 3)) / counts


def neighbour_losses(network: Network, noisy: Tensor, known: Tensor, *, places: Tensor, clip: bool) -> Tensor:
    """The loss of each image, in units of g: (N,).

    `places`: (N, 1, H, W), whole numbers, evenly from 0 to DIRECTIONS - 1, of which one for each square counts.
    """
    chosen = _one_each_square(places)
    with torch.no_grad():
        whole_u, whole_v = _halves(_expected(network(noisy, known), known, clip=clip), chosen)
    error = _neighbour_error(network, noisy, known, chosen=chosen, clip=clip)
    return (error.square() + GAMMA * (error - (whole_u - whole_v)).square()).mean(dim=(1, 2, 3))


def neighbour_criterion(network: Network, noisy: Tensor, known: Tensor, *, places: Tensor, clip: bool) -> Tensor:
    """What epochs are compared by: the first term of `neighbour_losses`, for each image, in units of g: (N,)."""
    error = _neighbour_error(network, noisy, known, chosen=_one_each_square(places), clip=clip)
    return error.square().mean(dim=(1, 2, 3))


def second_losses(network: Network, noisy: Tensor, known: Tensor, *, second: Tensor, clip: bool) -> Tensor:
    """The squared error of each image against a second noisy one, (N, 1, H, W): (N,), in units of g."""
    return (_expected(network(noisy, known), known, clip=clip) - second).square().mean(dim=(1, 2, 3))


def _one_each_square(places: Tensor) -> Tensor:
    height, width = (side // 2 * 2 for side in places.shape[-2:])
    return places[..., :height:2, :width:2].long()


def _neighbour_error(network: Network, noisy: Tensor, known: Tensor, *, chosen: Tensor, clip: bool) -> Tensor:
    """g(f(u)) - v: (N, 1, H / 2, W / 2)."""
    u, v = _halves(noisy, chosen)
    return _expected(network(u, known), known, clip=clip) - v


def _expected(estimate: Tensor, known: Tensor, *, clip: bool) -> Tensor:
    """g of an estimate: the mean of a noisy pixel, under the clamp or without."""
    mean, std = (column.view(-1, 1, 1, 1) for column in known.to(estimate.dtype).unbind(dim=1))
    return clamped_mean(estimate + mean, std) if clip else estimate + mean


def _replaced(noisy: Tensor, places: Tensor) -> Tensor:
    padded = F.pad(noisy, (1, 1, 1, 1), mode="reflect")
    height, width = noisy.shape[-2:]
    result = noisy
    for number, (down, right) in enumerate(_NEIGHBOURS):
        neighbour = padded[..., 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        result = torch.where(places == number, neighbour, result)
    return result


def _halves(image: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Two images of half the size, whose pixels were adjacent; `chosen`: (N, 1, H / 2, W / 2), places in _PAIRS."""
    height, width = image.shape[-2] // 2 * 2, image.shape[-1] // 2 * 2
    squares = F.pixel_unshuffle(image[..., :height, :width], 2)  # (N, 4, H / 2, W / 2), row by row
    first, second = (
        torch.tensor([2 * pair[side][0] + pair[side][1] for pair in _PAIRS], device=image.device) for side in (0, 1)
    )
    return squares.gather(1, first[chosen]), squares.gather(1, second[chosen])
