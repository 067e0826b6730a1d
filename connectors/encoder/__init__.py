"""From text to vectors: the chunker cuts documents by the model's own tokenizer, the encoder embeds the chunks.

Importing this package is cheap; torch is loaded where it is the runtime, and by the child that exports a model.
"""

from __future__ import annotations

from connectors.encoder.chunker import TokenChunker
from connectors.encoder.model import load_encoder
from connectors.encoder.onnx import OnnxEncoder
from connectors.encoder.torch import SentenceTransformersEncoder

__all__ = ["OnnxEncoder", "SentenceTransformersEncoder", "TokenChunker", "load_encoder"]
