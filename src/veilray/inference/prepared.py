"""A trained network made ready for a device, on inputs of any size: whole where they are small, else in tiles."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from veilray.errors import UsageError
from veilray.inference.engine import Precision, pick_precision, prepare
from veilray.inference.pooling import pool_statistics
from veilray.inference.tiles import Tile, plan_tiles, smallest_tile
from veilray.models.build import DenoisingNetwork
from veilray.models.layers import Window

TILE = 1024
PROCESSOR_PIXELS = 256 * 256
"""Pixels that go through the network at once on a processor, of images that are no larger: more leave its caches."""
SETTLED = 1e-6


class PreparedNetwork:
    """(N, C, H, W), whose sides are multiples of `stride` -> (N, 1, H, W), float32, on the device of the inputs.

    `tile` is the side of the largest square that goes through the network at once, which bounds the memory; tiles
    overlap by `halo`, the network's receptive radius. Statistics that layers take over an image are those of the whole
    image in its tiles too, and are kept meanwhile (`keeps_statistics`).

    Raises UsageError for an unknown precision, or a tile smaller than the network allows.
    """

    def __init__(
        self, model: DenoisingNetwork, *, device: torch.device, precision: Precision | str, tile: int | None
    ) -> None:
        self.device = device
        self.dtype = pick_precision(precision, device)
        self.module = prepare(model, device=device, dtype=self.dtype)
        self._pool, self._norms = pool_statistics(self.module)
        self.stride = model.stride
        self.halo = -(-model.receptive_radius // model.stride) * model.stride
        smallest = smallest_tile(halo=self.halo, stride=self.stride)
        self.tile = max(TILE, 2 * smallest) if tile is None else tile
        if self.tile < smallest:
            raise UsageError(f"tile = {tile} is too small for this network: it needs at least {smallest} pixels")

    @property
    def keeps_statistics(self) -> bool:
        """Whether the tiles of an image share statistics, which are kept meanwhile: one thread at a time, then."""
        return bool(self._norms)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Whole where `tile` allows it, else tile by tile."""
        pixels = inputs.shape[-2] * inputs.shape[-1]
        if pixels <= self.tile**2:
            return self.whole(inputs, batch=max(1, self._at_once() // pixels))
        return torch.cat([self.tiled(image) for image in torch.split(inputs, 1)])

    def tiles(self, inputs: Tensor) -> list[Tile]:
        """How inputs of this size are cut."""
        return plan_tiles(*inputs.shape[-2:], tile=self.tile, halo=self.halo, stride=self.stride)

    def whole(self, inputs: Tensor, *, batch: int) -> Tensor:
        """(N, C, H, W) -> (N, 1, H, W), `batch` images at a time.

        On a processor each thread takes others, for several on one wait at every layer.
        """
        parts, threads = torch.split(inputs, batch), torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or len(parts) == 1:
            return torch.cat([self._together(images) for images in parts])
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as hands:
                return torch.cat(list(hands.map(self._together, parts)))
        finally:
            torch.set_num_threads(threads)  # also what threads begin with that are born later

    def tiled(self, image: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, 1, H, W), tile by tile."""
        tiles = self.tiles(image)
        try:
            self._pool.mode = "collect"
            for _ in self._norms:  # after as many passes as there are layers, the last one is exact
                self._pass(image, tiles)
                if max([norm.settle() for norm in self._norms]) < SETTLED:
                    break
            self._pool.mode = "apply"
            return self._pass(image, tiles)
        finally:
            self._pool.mode = "own"
            for norm in self._norms:
                norm.forget()

    def _at_once(self) -> int:
        return min(self.tile**2, PROCESSOR_PIXELS) if self.device.type == "cpu" else self.tile**2

    @torch.no_grad()
    def _together(self, images: Tensor) -> Tensor:
        output: Tensor = self.module(self._placed(images)).to(images.device)
        return output

    def _pass(self, image: Tensor, tiles: Sequence[Tile]) -> Tensor:
        """Every tile through the network once, as many at a time as `tile` allows."""
        output = torch.empty_like(image[:, :1], memory_format=torch.contiguous_format)
        first = tiles[0]
        area = (first.rows.stop - first.rows.start) * (first.columns.stop - first.columns.start)
        batch = max(1, self.tile**2 // area)
        for index in range(0, len(tiles), batch):
            chosen = tiles[index : index + batch]
            window = Window(
                tops=tuple(tile.rows.start for tile in chosen),
                lefts=tuple(tile.columns.start for tile in chosen),
                height=image.shape[-2],
                width=image.shape[-1],
            )
            cut = [image[..., t.rows.start : t.rows.stop, t.columns.start : t.columns.stop] for t in chosen]
            self._pool.at(chosen)
            results = self.module.forward_tiles(self._placed(torch.cat(cut)), window).to(image.device)
            for tile, result in zip(chosen, results, strict=True):
                kept = result[:, tile.rows.kept, tile.columns.kept]
                output[0, :, tile.rows.first : tile.rows.last, tile.columns.first : tile.columns.last] = kept
        return output

    def _placed(self, images: Tensor) -> Tensor:
        return images.to(self.device).contiguous(memory_format=torch.channels_last)
