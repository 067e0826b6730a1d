"""Completion, asked for as a real bash asks: commands, options, names of collections."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner

from streams.cli.root import COMMANDS, cli

UPWELL: Final = Path(sys.executable).with_name("upwell")
SPEC: Final = '[collections.content]\ntable = "a.b"\n[collections.customers]\n[collections.orders]\n'
#: What the shell does at a Tab, once the script was evaluated.
TAB: Final = """
set -eu
eval "$(upwell completion bash)"
complete -p upwell
COMP_WORDS=({words}); COMP_CWORD={at}
_upwell_completion upwell
printf '%s\\n' "${{COMPREPLY[@]-}}"
"""


def completed(folder: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    quoted = " ".join(f"'{word}'" for word in ("upwell", *words))
    done = subprocess.run(
        [bash, "--norc", "-c", TAB.format(words=quoted, at=len(words))],
        cwd=folder,
        env={"PATH": f"{UPWELL.parent}:{os.environ['PATH']}", "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, *offered = done.stdout.splitlines()
    assert first.endswith("-F _upwell_completion upwell")
    return {each for each in offered if each}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["con"], {"connector"}),
        (["s"], {"stack", "search", "status"}),
        (["connector", "re"], {"restart"}),
        (["search", "c"], {"content", "customers"}),
        (["explain", "o"], {"orders"}),
        (["report", "--collection", "co"], {"content"}),
        (["report", "--j"], {"--json"}),
        (["completion", ""], {"bash", "zsh", "fish"}),
        (["--spec", "other.toml", "search", ""], {"elsewhere"}),
    ],
)
def test_bash_completes(tmp_path: Path, words: list[str], offered: set[str]) -> None:
    (tmp_path / "upwell.toml").write_text(SPEC)
    (tmp_path / "other.toml").write_text("[collections.elsewhere]\n")
    found = completed(tmp_path, *words)
    assert found >= offered
    assert all(each.startswith(words[-1]) for each in found)


@pytest.mark.parametrize("text", [None, "[broken", "collections = 3\n"])
def test_without_a_spec_that_can_be_read_nothing_is_said(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "upwell.toml").write_text(text)
    assert completed(tmp_path, "search", "c") == set()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    done = CliRunner().invoke(cli, ["completion", shell])
    assert done.exit_code == 0
    assert "_UPWELL_COMPLETE" in done.stdout


def test_commands_are_offered_without_being_imported() -> None:
    """A shell waits for this at every Tab."""
    code = (
        "import sys, os; os.environ.update(_UPWELL_COMPLETE='bash_complete', COMP_WORDS='upwell ', COMP_CWORD='1')\n"
        "from streams.cli.root import main\n"
        "try:\n    main()\nexcept SystemExit: pass\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('torch', 'faust', 'psycopg', 'confluent_kafka')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    *offered, heavy = done.stdout.splitlines()
    assert [line.removeprefix("plain,") for line in offered] == list(COMMANDS)
    assert heavy == "[]"
