"""What the sections share: stack, plan, texts, and the encoders alone, which are measured once a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final, Literal

from streams.benchmark.bare import Bare, model_settings, run
from streams.benchmark.corpus import Corpus
from streams.benchmark.line import Progress, Stack
from streams.benchmark.plan import Plan
from streams.ports import Encoder

Kind = Literal["mixed", "short"]
KINDS: Final[tuple[Kind, ...]] = ("mixed", "short")
#: Of upwell and of the bare encoder alike; sentence-transformers has one process with its own threads.
PROCESSES: Final = 2


@dataclass(frozen=True, slots=True)
class Alone:
    """Encoders alone over all chunks of so many documents."""

    documents: int
    chunks: int
    onnx: Bare
    torch: Bare

    @property
    def onnx_rate(self) -> float:
        """Documents a second."""
        return self.documents / self.onnx.seconds

    @property
    def torch_rate(self) -> float:
        """Documents a second."""
        return self.documents / self.torch.seconds


@dataclass
class Bench:
    """One run."""

    stack: Stack
    plan: Plan
    tell: Progress
    _alone: dict[Kind, Alone] = field(default_factory=dict)
    _chunks: dict[Kind, list[str]] = field(default_factory=dict)

    @cached_property
    def corpus(self) -> Corpus:
        return Corpus(self.plan.seed)

    @cached_property
    def encoder(self) -> Encoder:
        """The worker's own, in this process."""
        from streams.models import encoder_of

        settings = model_settings()
        return encoder_of(settings, settings.model.name, self.tell)

    def texts(self, kind: Kind) -> list[str]:
        """Of a backfill."""
        if kind == "mixed":
            return [self.corpus.mixed(number) for number in range(self.plan.documents)]
        return [self.corpus.short(number) for number in range(self.plan.short_documents)]

    def chunks(self, texts: Sequence[str]) -> list[str]:
        """As a worker cuts them."""
        from connectors.encoder import TokenChunker

        chunker = TokenChunker.of(self.encoder)
        return [chunk for text in texts for chunk in chunker.chunks(text)]

    def alone(self, kind: Kind) -> Alone:
        """Both encoders over the texts of the backfill; measured when it is first asked for."""
        if kind not in self._alone:
            texts = self.texts(kind)
            chunks = self._chunks[kind] = self.chunks(texts)
            self.tell(f"{kind}: {len(texts)} documents, {len(chunks)} chunks")
            onnx = self._onnx(kind, len(texts))
            torch = run("torch", chunks, 1, self.stack.home)
            self.tell(f"{kind}: SentenceTransformer.encode: {len(texts) / torch.seconds:.1f} documents/s")
            self._alone[kind] = Alone(len(texts), len(chunks), onnx, torch)
        return self._alone[kind]

    def onnx_rate(self, kind: Kind) -> float:
        """Documents a second of the bare ONNX encoders just now: a shared machine is another one a minute later."""
        documents = self.alone(kind).documents
        return documents / self._onnx(kind, documents).seconds

    def _onnx(self, kind: Kind, documents: int) -> Bare:
        found = run("onnx", sorted(self._chunks[kind], key=len), PROCESSES, self.stack.home)
        self.tell(f"{kind}: two bare ONNX encoders: {documents / found.seconds:.1f} documents/s")
        return found
