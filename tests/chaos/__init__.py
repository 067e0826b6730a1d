"""Random changes under random faults on the real stack, and what must hold then: `make chaos SEED=n MINUTES=m`."""
