"""Postgres as source and as sink: SQL in named blocks, migrations, and the store behind the ports."""
