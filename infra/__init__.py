"""The local stack and the sample shop."""
