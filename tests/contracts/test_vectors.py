"""Vectors travel as one binary array of numbers, and arrive as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import psycopg
import pytest

from connectors.postgres.vectors import vector_arrays

FLOAT: Final = np.finfo(np.float32)
QUERY: Final = """SELECT coalesce((%(reals)b::real[])[u.first : u.last], '{}')
                    FROM unnest(%(firsts)b::int[], %(lasts)b::int[]) WITH ORDINALITY AS u(first, last, n) ORDER BY n"""


@pytest.mark.parametrize(
    "vectors",
    [
        [],
        [[1.5]],
        [[0.1, -0.2], [3e-38, float(FLOAT.max)], [float(FLOAT.smallest_subnormal), 0.0]],
        [[1.0], [2.0, 3.0], [], [4.0, 5.0, 6.0]],
        np.random.default_rng(7).normal(size=(64, 384)).astype(np.float32),
    ],
    ids=["none", "one number", "extremes", "of several lengths", "many"],
)
def test_each_vector_is_its_slice(connection: psycopg.Connection[Any], vectors: Sequence[Any]) -> None:
    found = [np.array(row[0], np.float32) for row in connection.execute(QUERY, vector_arrays(vectors))]
    assert len(found) == len(vectors)
    assert all((a == np.array(b, np.float32)).all() for a, b in zip(found, vectors, strict=True))
