"""SimCAS (Chunk, Align, Select) in JAX and Flax."""

__version__ = "0.2.0"
