"""Turn pending rows into vectors by their deadline."""
