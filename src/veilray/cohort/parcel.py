"""A prepared image on its way from one rank to the lead: JSON and the bytes of its levels, nothing executable."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

import numpy as np

from veilray.cohort.prepare import Prepared, Rejected
from veilray.images.radiograph import FloatImage

_NO_PIXELS: FloatImage = np.empty((0, 0), dtype=np.float32)


def pack(result: Prepared | Rejected) -> tuple[dict[str, Any], bytes]:
    """What JSON can hold of a result, and its levels row by row."""
    if isinstance(result, Rejected):
        return {"rejected": dataclasses.asdict(result)}, b""
    facts = dataclasses.asdict(
        dataclasses.replace(result, radiograph=_without_pixels(result), levels=result.levels[:0])
    )
    del facts["levels"], facts["radiograph"]["pixels"]
    levels = np.ascontiguousarray(result.levels, dtype=result.levels.dtype.newbyteorder("<"))
    return {"prepared": facts, "shape": list(levels.shape), "dtype": result.levels.dtype.name}, levels.tobytes()


def unpack(header: dict[str, Any], content: bytes) -> Prepared | Rejected:
    """The result that `pack` took apart."""
    if "rejected" in header:
        return Rejected(**header["rejected"])
    levels = np.frombuffer(content, dtype=np.dtype(header["dtype"]).newbyteorder("<")).reshape(header["shape"])
    facts = header["prepared"] | {"levels": levels.astype(header["dtype"])}
    facts["radiograph"] |= {"pixels": _NO_PIXELS}
    prepared: Prepared = _rebuilt(Prepared, facts)
    return prepared


def _without_pixels(result: Prepared) -> Any:
    return dataclasses.replace(result.radiograph, pixels=_NO_PIXELS)


def _rebuilt(kind: Any, value: Any) -> Any:
    """Dataclasses and tuples, as the types of their fields say, from what JSON makes of them."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return typing.cast(Any, kind)(**{name: _rebuilt(hints[name], inner) for name, inner in value.items()})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    if typing.get_origin(kind) in (typing.Union, types.UnionType) and value is not None:
        tuples = [one for one in typing.get_args(kind) if typing.get_origin(one) is tuple]
        return tuple(value) if tuples and isinstance(value, list) else value
    return value
