"""Keys as a person writes them on the command line."""

from __future__ import annotations

import pytest

from schemas.errors import SettingsError
from schemas.names import key_values

TWO = ("tenant", "slug")


@pytest.mark.parametrize(
    ("columns", "words", "values"),
    [
        (("id",), ["42"], ["42"]),
        (("id",), ["id=42"], ["42"]),
        (("id",), ["[42]"], [42]),
        (("id",), ["[draft] tea"], ["[draft] tea"]),
        (("id",), ["a=1,b=2"], ["a=1,b=2"]),
        (TWO, ["acme", "reset password"], ["acme", "reset password"]),
        (TWO, ["tenant=acme,slug=a, b=c"], ["acme", "a, b=c"]),
        (TWO, ["slug=x", "tenant=acme"], ["acme", "x"]),
        (TWO, ["tenant=,slug="], ["", ""]),
        (TWO, ['["acme", "slug=\\u00fc"]'], ["acme", "slug=ü"]),
        (TWO, ["tenant=a", "b"], ["tenant=a", "b"]),
    ],
)
def test_a_key_has_three_spellings(columns: tuple[str, ...], words: list[str], values: list[object]) -> None:
    assert key_values(columns, words) == values


@pytest.mark.parametrize(
    "words", [[], ["acme"], ["tenant=acme"], ["tenant=a,slug=b,slug=c"], ["a", "b", "c"], ["[1]"], ["[1, 2"]]
)
def test_what_is_none_of_them_says_how_to_write_it(words: list[str]) -> None:
    with pytest.raises(
        SettingsError, match=r"^a key has the columns tenant, slug: .* tenant=\.\.\.,slug=\.\.\., or"
    ):
        key_values(TWO, words)
