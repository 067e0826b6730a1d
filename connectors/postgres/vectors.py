"""Vectors as parameters: the numbers of all as one real[] in binary. Written as text each would take 0.4 ms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format

#: Of real[]; and of its elements, as its binary form names them.
ARRAY_OID: Final = 1021
OID: Final = 700
#: A length before each number, both in network order (array_recv of Postgres).
ELEMENT: Final = np.dtype([("bytes", ">i4"), ("number", ">f4")])


@dataclass(frozen=True, slots=True)
class Reals:
    """One dimension, float32."""

    numbers: npt.NDArray[np.float32]


class _RealsDumper(Dumper):
    format = Format.BINARY
    oid = ARRAY_OID

    def dump(self, obj: Reals) -> Buffer:
        elements = np.empty(len(obj.numbers), ELEMENT)
        elements["bytes"], elements["number"] = 4, obj.numbers
        # Dimensions, no NULL, type; length and first index of the dimension.
        return np.array([1, 0, OID, len(elements), 1], ">i4").tobytes() + elements.tobytes()


psycopg.adapters.register_dumper(Reals, _RealsDumper)


def vector_arrays(vectors: Sequence[Sequence[float]]) -> dict[str, Any]:
    """`reals` has all numbers, `firsts` and `lasts` say which are each vector's, as a slice in SQL has them."""
    lasts = np.cumsum([len(vector) for vector in vectors], dtype=int)
    firsts = lasts - [len(vector) - 1 for vector in vectors]
    none = np.empty(0, np.float32)
    numbers = np.concatenate([none, *(np.asarray(vector, np.float32) for vector in vectors)])
    return {"reals": Reals(numbers), "firsts": firsts.tolist(), "lasts": lasts.tolist()}
