"""Source and sink compared, key by key, beside live traffic: a pure core and its shell (ADR 0013)."""
