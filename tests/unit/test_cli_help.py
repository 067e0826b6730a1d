"""Help: every command has it, with a line that fits and says something."""

from __future__ import annotations

from typing import Final

import click
import pytest
from click.testing import CliRunner

from streams.cli.root import COMMANDS, cli
from tests.unit.test_readme import ALL


@pytest.mark.parametrize("path", ["", *ALL])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_works_without_settings_and_anywhere(path: str, flag: str) -> None:
    environment = {"UPWELL_SPEC": "/nonexistent", "UPWELL_NONSENSE": "1"}
    done = CliRunner().invoke(cli, [*path.split(), flag], env=environment)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['cli', path]).strip()} ")


@pytest.mark.parametrize("path", ALL)
def test_every_command_has_a_line_of_its_own(path: str) -> None:
    first = (ALL[path].help or "").split("\n")[0]
    assert first.endswith(".")
    assert len(first) <= 110


@pytest.mark.parametrize("path", [path for path in ALL if " " in path])
def test_the_line_in_a_list_of_commands_is_not_cut_off(path: str) -> None:
    assert not ALL[path].get_short_help_str(limit=67).endswith("...")


@pytest.mark.parametrize("path", ALL)
def test_every_option_says_what_it_does(path: str) -> None:
    for option in ALL[path].params:
        if isinstance(option, click.Option):
            assert option.help, option.name


def test_the_root_lists_every_command_with_its_line() -> None:
    listed = CliRunner().invoke(cli, ["--help"], terminal_width=160).stdout
    width = max(map(len, COMMANDS)) + 2
    for name, (_, _, line) in COMMANDS.items():
        assert f"  {name:<{width}}{line}" in listed
        assert line.endswith(".")


#: What a person types wrong, and a word of what is said.
WRONG: Final = {
    "frobnicate": "No such command",
    "connector frobnicate": "No such command",
    "stack logs nothing": "is not one of",
    "stack up --port kafka": "NAME=PORT",
    "stack up --port nothing=1": "NAME=PORT",
    "demo --seconds many": "not a valid float",
    "demo --seconds -1": "not in the range",
    "up --deadline-seconds -1": "not in the range",
    "connector apply --wait -1": "not in the range",
    "worker --processes -1": "not in the range",
    "migrate sink --print": "No such option",
    "report more": "unexpected extra argument",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_exit_2_and_says_how(line: str) -> None:
    done = CliRunner().invoke(cli, line.split())
    assert (done.exit_code, done.stdout) == (2, "")
    assert WRONG[line] in done.stderr
    assert "Usage: cli" in done.stderr
    assert "Traceback" not in done.stderr
