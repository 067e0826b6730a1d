"""From text to vectors: the chunker cuts documents by the model's own tokenizer, the encoder embeds the chunks.

Importing this package is cheap; torch is loaded by `load_encoder` only.
"""

from __future__ import annotations

from connectors.encoder.chunker import TokenChunker
from connectors.encoder.model import SentenceTransformersEncoder, load_encoder

__all__ = ["SentenceTransformersEncoder", "TokenChunker", "load_encoder"]
