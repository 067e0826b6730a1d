"""`python -m infra.sample --dsn DSN` loads the shop; `--print content 42` shows one of its rows."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

import psycopg

from infra.sample import content, customers, load


def main(arguments: list[str] | None = None) -> int:
    """Exit 0 if it was done, 1 if there is no such row, 2 for wrong usage, 3 if the database is not there."""
    parser = argparse.ArgumentParser(prog="python -m infra.sample", description="the sample shop")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dsn", help="load the shop into this database if it is empty")
    what.add_argument("--print", nargs=2, metavar=("TABLE", "KEY"), dest="row", help="show a row and exit")
    parser.add_argument("--seed", type=int, default=7, help="which shop (default 7)")
    options = parser.parse_args(arguments)
    if options.row:
        return _show(parser, *options.row, seed=options.seed)
    try:
        load(options.dsn, seed=options.seed, progress=print)
    except psycopg.OperationalError as error:
        print(f"the database cannot be reached: {str(error).strip()}", file=sys.stderr)
        return 3
    return 0


def _show(parser: argparse.ArgumentParser, table: str, key: str, *, seed: int) -> int:
    """Print one row, a line a column and its long text last."""
    if table not in {"content", "customers"} or not key.isdecimal():
        parser.error("--print wants content or customers, and a number")
    rows = content(seed) if table == "content" else customers(seed)
    for row in rows:
        if row.id == int(key):
            _print(asdict(row))
            return 0
    print(f"no row {key} in {table}: keys are 1 to {len(rows)}", file=sys.stderr)
    return 1


def _print(columns: dict[str, Any]) -> None:
    """Columns in their order; the text below a blank line."""
    text = next(columns.pop(name) for name in ("body", "notes") if name in columns)
    for name, value in columns.items():
        print(f"{name:>18}  {', '.join(value) if isinstance(value, tuple) else value}")
    print(f"\n{text}")


if __name__ == "__main__":
    sys.exit(main())
