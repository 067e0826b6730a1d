"""The README says what the code does. `python -m tests.unit.test_readme` writes its settings table anew."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from schemas.names import VIEW_COLUMNS
from schemas.spec import Chunking, CollectionSpec, Slo, VectorIndex
from streams.cli.root import cli
from streams.settings import PLACES, Settings, variables
from tests.fixtures.certificates import Authority

ROOT: Final = Path(__file__).parents[2]
README: Final = ROOT / "README.md"
DECISIONS: Final = sorted((ROOT / "infra" / "decisions").glob("*.md"))
BEGIN: Final = "<!-- settings: kept equal to the code by tests/unit/test_readme.py -->\n"
END: Final = "<!-- end of settings -->"
#: Commands of DESIGN 10 that are not built yet: the README must not send anybody to them.
PLANNED: Final = frozenset[str]()


#: Written in every command's help, and said once for all in the README.
COMMON: Final = frozenset({"--help", "--spec", "--version"})


def readme() -> str:
    return README.read_text(encoding="utf-8")


def section(title: str) -> str:
    """The text below a heading of the second level."""
    return readme().split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def first_cells(text: str) -> list[str]:
    """The first cell of every table row that is neither heading nor rule."""
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [row[0].removeprefix("| ").strip("` |") for row in rows]


# Settings


def field_of(place: tuple[str, ...]) -> FieldInfo:
    """The pydantic field of a setting."""
    model: type[BaseModel] = Settings
    for part in place[:-1]:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return model.model_fields[place[-1]]


def settings_table() -> str:
    """Every setting as Markdown, in the order of the code."""
    lines = ["| variable | key in the spec | default | meaning |", "|---|---|---|---|"]
    for variable, place in variables().items():
        field = field_of(place)
        default = "not set" if field.default == "" else f"`{field.default}`"
        meaning = "see [the spec](#the-spec)" if variable == "UPWELL_MODEL_NAME" else field.description
        key = f"[{place[0]}] {place[1]}" if len(place) > 1 else place[0]
        lines.append(f"| `{variable}` | `{key}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def with_settings_table(text: str) -> str:
    """The README with its table written anew."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + settings_table() + END + rest.partition(END)[2]


def test_the_settings_table_is_that_of_the_code() -> None:
    assert readme().count(BEGIN) == readme().count(END) == 1
    assert readme() == with_settings_table(readme()), (
        "run .venv/bin/python -m tests.unit.test_readme: it writes the table anew"
    )


@pytest.mark.parametrize("variable", [name for name in variables() if name != "UPWELL_MODEL_NAME"])
def test_every_setting_says_what_it_means(variable: str) -> None:
    description = field_of(variables()[variable]).description
    assert description
    assert "|" not in description
    assert "\n" not in description


def test_every_variable_in_the_readme_is_a_setting_or_a_place() -> None:
    named = set(re.findall(r"UPWELL_[A-Z_]+", readme()))
    assert named == {*variables(), *PLACES}


# The spec


def test_every_key_of_the_spec_is_explained() -> None:
    nested: Mapping[str, type[BaseModel]] = {"chunk": Chunking, "slo": Slo, "index": VectorIndex}
    keys = {"name", "[model] name", "[model] runtime", "[collections.C]"}
    for name in CollectionSpec.model_fields:
        inner = nested[name].model_fields if name in nested else None
        keys |= {f"{name}.{each}" for each in inner} if inner else {name}
    assert set(first_cells(section("The spec"))[1:]) == keys


def test_the_example_is_a_part_of_the_sample_spec() -> None:
    examples = toml_in(section("The spec"))
    assert examples
    sample = tomllib.loads((ROOT / "upwell.toml").read_text(encoding="utf-8"))
    for example in examples:
        Settings(**example)
        assert overlaid(sample, example) == sample


def toml_in(text: str) -> list[dict[str, Any]]:
    return [tomllib.loads(found) for found in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]


def test_the_example_of_secured_neighbours_is_accepted(tmp_path: Path) -> None:
    """With files of ours where it names some of the reader's."""
    authority, secret = Authority(tmp_path), tmp_path / "secret"
    secret.write_text("hunter2\n")
    text = re.sub(r"/run/secrets/\w+", str(secret), section("Your own databases"))
    (example,) = toml_in(text.replace("/etc/upwell/ca.pem", str(authority.ca_file)))
    accepted = Settings(**example)
    assert accepted.kafka.security().password == accepted.registry.access().password == "hunter2"
    assert "password=hunter2" in accepted.source.dsn


def overlaid(whole: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """`whole` with what `part` says otherwise."""
    return {
        **whole,
        **{
            key: overlaid(whole.get(key, {}), value) if isinstance(value, dict) else value
            for key, value in part.items()
        },
    }


def test_every_column_of_a_view_is_explained_in_order() -> None:
    found = [cell for cell in first_cells(section("Query it")) if cell in VIEW_COLUMNS]
    assert found == list(VIEW_COLUMNS)


# Commands


def commands(group: click.Command = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command and subcommand with its words after `upwell`."""
    if path:
        yield path, group
    if isinstance(group, click.Group):
        with click.Context(group) as ctx:
            for name in group.list_commands(ctx):
                command = group.get_command(ctx, name)
                assert command is not None
                yield from commands(command, f"{path} {name}".strip())


ALL: Final = dict(commands())
#: `stack` and `connector` alone only show their help.
DONE_ALONE: Final = {
    path: command
    for path, command in ALL.items()
    if not (isinstance(command, click.Group) and not command.invoke_without_command)
}


def documented() -> dict[str, str]:
    """The rows of the command table, by the command's words."""
    rows = [line for line in section("Commands").splitlines() if line.startswith("| `upwell ")]
    return {" ".join(re.findall(r"(?<= )[a-z-]+", row.split("`")[1])): row for row in rows}


def test_every_command_is_documented_and_nothing_else() -> None:
    assert set(documented()) == set(DONE_ALONE)


@pytest.mark.parametrize("path", DONE_ALONE)
def test_every_argument_and_option_is_documented(path: str) -> None:
    row = documented()[path]
    for parameter in DONE_ALONE[path].params:
        if isinstance(parameter, click.Argument):
            assert parameter.human_readable_name.upper() in row.split("`")[1]
        for option in parameter.opts if isinstance(parameter, click.Option) else []:
            assert re.search(rf"`{option}\b", row) or option in COMMON, f"{path}: {option}"


@pytest.mark.parametrize("path", DONE_ALONE)
def test_no_option_is_documented_that_does_not_exist(path: str) -> None:
    known = {name for each in DONE_ALONE[path].params for name in (*each.opts, *each.secondary_opts)}
    named = set(re.findall(r"(?<=`)--?[a-z][a-z-]*", documented()[path]))
    assert named <= known


def test_only_commands_that_exist_are_named() -> None:
    for words in re.findall(r"\bupwell ((?:[a-z][a-z-]*)(?: [a-z][a-z-]*)?)", code(readme())):
        first, _, second = words.partition(" ")
        assert first in ALL, words
        if second and isinstance(ALL.get(first), click.Group):
            assert words in ALL


def code(text: str) -> str:
    """What is between backquotes, one piece a line."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", text, re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)])


def test_what_is_not_built_yet_is_not_documented() -> None:
    assert not PLANNED & set(ALL), "it is built now: take it out of PLANNED"
    for planned in PLANNED:
        assert f"upwell {planned}" not in readme(), planned


# Make, links


def targets() -> set[str]:
    """Targets of the Makefile that are for people."""
    return set(re.findall(r"^([a-z]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def test_every_make_target_is_documented_and_nothing_else() -> None:
    assert set(re.findall(r"\bmake ([a-z]+)\b", code(readme()))) == targets()
    table = [cell for cell in first_cells(section("Two commands")) if cell.startswith("make ")]
    assert {cell.removeprefix("make ") for cell in table} == targets()


def links(text: str) -> list[str]:
    """Targets of Markdown links that are not inside code."""
    plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", plain)


def anchors(text: str) -> set[str]:
    """The anchor of every heading."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *DECISIONS], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page.read_text(encoding="utf-8")):
        assert "://" not in link, "a link out of the repository may break without a change here"
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_decision_is_linked() -> None:
    assert {f"infra/decisions/{page.name}" for page in DECISIONS} <= set(links(readme()))


def test_every_path_of_a_decision_exists() -> None:
    for page in DECISIONS:
        named = re.findall(
            r"`((?:schemas|connectors|streams|infra|tests)/[\w./-]+)`", page.read_text("utf-8")
        )
        assert [path for path in named if not (ROOT / path).exists()] == [], page.name


if __name__ == "__main__":
    README.write_text(with_settings_table(readme()), encoding="utf-8")
