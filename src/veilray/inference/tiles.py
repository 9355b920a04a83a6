"""Cutting an image into overlapping tiles whose kept parts cover it once."""

from __future__ import annotations

from dataclasses import dataclass

from veilray.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One tile along one axis: it reads [start, stop) and answers for [first, last)."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def kept(self) -> slice:
        """The part it answers for, counted from its own start."""
        return slice(self.first - self.start, self.last - self.start)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A rectangle of an image: rows and columns."""

    rows: Segment
    columns: Segment


def plan_tiles(height: int, width: int, *, tile: int, halo: int, stride: int) -> list[Tile]:
    """Tiles of one shape, at most `tile` pixels a side, that cover an image row by row.

    `height`, `width` and `halo` are multiples of `stride`, and so is every edge of a tile. Each kept pixel lies at
    least `halo` from its tile's edges, unless the edge is the image's. Raises UsageError where `tile` is too small.
    """
    side = tile // stride * stride
    smallest = smallest_tile(halo=halo, stride=stride)
    if side < smallest:
        raise UsageError(f"tile = {tile} is too small for this network: it needs at least {smallest} pixels")
    rows = _segments(height, side=side, halo=halo)
    columns = _segments(width, side=side, halo=halo)
    return [Tile(rows=row, columns=column) for row in rows for column in columns]


def smallest_tile(*, halo: int, stride: int) -> int:
    """The smallest side that leaves something to keep between two halos."""
    return 2 * halo + stride


def _segments(length: int, *, side: int, halo: int) -> list[Segment]:
    if length <= side:
        return [Segment(start=0, stop=length, first=0, last=length)]
    segments: list[Segment] = []
    first = 0
    while first < length:
        # The last tile is moved back to end with the image, so that all tiles have one shape.
        start = min(max(first - halo, 0), length - side)
        stop = start + side
        last = length if stop == length else stop - halo
        segments.append(Segment(start=start, stop=stop, first=first, last=last))
        first = last
    return segments
