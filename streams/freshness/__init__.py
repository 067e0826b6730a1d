"""How old is what applications see: sketches of propagation delay, and the report."""
