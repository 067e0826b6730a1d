"""What upwell says, read off its code: pages that quote its lines are held to it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
CODE: Final = ("schemas", "connectors", "streams")


def said() -> str:
    """Every string of the code, its placeholders left out, each piece in a line of its own."""
    found: list[str] = []
    for folder in CODE:
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    pieces = [
                        str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values
                    ]
                    found.append("".join(pieces).replace("\0", "\n"))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def quoted(cell: str) -> list[str]:
    """The lines that a cell of a table quotes, in the pieces that `…` cuts them into."""
    return [
        piece.strip()
        for line in re.findall(r"`((?:\\`|[^`])+)`", cell)
        for piece in line.replace("\\`", "`").split("…")
        if piece.strip()
    ]
