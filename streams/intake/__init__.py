"""Decode, decide, write, acknowledge: milliseconds, and no model in this path."""
