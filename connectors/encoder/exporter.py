"""The child that exports one model: `python -m connectors.encoder.exporter NAME SOURCE IDENTITY PART PARENT`.

All modules of the model become one graph (`torch.onnx.export`), from token ids to the vector before it is normalised.
The graph's vectors of the parity corpus are then compared with those of sentence-transformers. A model that does not
export, or not well enough, leaves a manifest that says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np

from connectors.encoder.directory import quiet
from connectors.encoder.export import MODEL_UNAVAILABLE, versions
from connectors.encoder.onnx import GRAPH, Manifest, OnnxEncoder
from connectors.encoder.torch import SentenceTransformersEncoder, load_torch
from schemas.errors import ModelUnavailable
from schemas.names import ModelName

LEAST_COSINE: Final = 0.9999
#: The int8 variant is another model; this much tells one that is as the study found it from one that is broken.
LEAST_COSINE_INT8: Final = 0.9
#: What the runtime can feed.
INPUTS: Final = ("input_ids", "attention_mask", "token_type_ids")
SAMPLE: Final = ("a short text", "a text with more tokens than the other one has")
_PR_SET_PDEATHSIG: Final = 1


class NotExportable(Exception):
    """This model has something that the runtime cannot serve, or that the exporter does not know."""


def main(name: str, source: str, identity: str, part: str, parent: str) -> None:
    """Raises OSError where the files cannot be written."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit("whoever wanted it is gone")
    quiet(offline=True)
    warnings.simplefilter("ignore")
    try:
        encoder = load_torch(f"path:{source}", device="cpu")
    except ModelUnavailable as error:
        print(str(error).replace(f"model path:{source}", f"model {name}"), file=sys.stderr)
        sys.exit(MODEL_UNAVAILABLE)
    export(name, encoder, identity, Path(part)).write(Path(part))


def export(name: str, encoder: SentenceTransformersEncoder, identity: str, part: Path) -> Manifest:
    """Graph and parity in `part`, where a graph is left only if it may be used."""
    made = Manifest(
        model=name,
        identity=identity,
        dimension=encoder.dimension,
        max_tokens=encoder.max_tokens,
        prompt=encoder.prompt,
        inputs=(),
        tokenizer_json="",
        versions=versions(),
        files={},
    )
    try:
        inputs, tokenizer_json = write_graph(encoder, part / GRAPH)
        least = LEAST_COSINE
        if ModelName.parse(name).is_int8:
            quantise(part / GRAPH)
            least = LEAST_COSINE_INT8
        made = replace(made, inputs=inputs, tokenizer_json=tokenizer_json)
        made = replace(made, parity=parity(encoder, OnnxEncoder(name, part, made)))
        if made.parity is None or not made.parity >= least:  # it may be NaN
            raise NotExportable(
                f"its vectors are not those of sentence-transformers: cosine {made.parity:.6f}"
            )
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever torch, onnxscript or ONNX Runtime raise: this model runs with torch
        for left in part.iterdir():
            left.unlink()
        return replace(made, problem=reason(error))
    return replace(made, files={path.name: path.stat().st_size for path in part.iterdir()})


def reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of it; torch wraps it into pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}"[:200] if not isinstance(error, NotExportable) else line


def write_graph(encoder: SentenceTransformersEncoder, graph: Path) -> tuple[tuple[str, ...], str]:
    """The graph's inputs, and the tokenizer that truncates and pads. Raises NotExportable, or what torch raises."""
    import torch

    model: Any = encoder._model
    features = model.preprocess(list(SAMPLE), **({"prompt": encoder.prompt} if encoder.prompt else {}))
    tensors = {key: value for key, value in features.items() if isinstance(value, torch.Tensor)}
    constants = {key: value for key, value in features.items() if key not in tensors}
    unknown = sorted(set(tensors) - set(INPUTS))
    if unknown or constants.get("modality", "text") != "text":
        raise NotExportable(f"it is fed with {', '.join(unknown) or constants['modality']}")
    inputs = tuple(key for key in INPUTS if key in tensors)
    both = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with torch.inference_mode(), _eager(model):
        torch.onnx.export(
            _whole(model, inputs, constants),
            tuple(tensors[key] for key in inputs),
            str(graph),
            input_names=list(inputs),
            output_names=["sentence_vector"],
            dynamic_shapes=(tuple(both for _ in inputs),),
            dynamo=True,
            external_data=True,
            verbose=False,
        )
    return inputs, model.tokenizer.backend_tokenizer.to_str()


@contextlib.contextmanager
def _eager(model: Any) -> Iterator[None]:
    """Attention as single operators: the graph of torch's fused one has detours around rows that are masked altogether,
    which cost up to 14 % of a call. A model that has no such attention keeps its own.
    """
    inner = [
        each for part in model if (each := getattr(part, "auto_model", None) or getattr(part, "model", None))
    ]
    before = [(each, getattr(each.config, "_attn_implementation", None)) for each in inner]
    try:
        with contextlib.suppress(Exception):  # whatever transformers raises: it exports as it is
            for each in inner:
                each.set_attn_implementation("eager")
        yield
    finally:
        with contextlib.suppress(Exception):
            for each, implementation in before:
                each.set_attn_implementation(implementation)


def _whole(model: Any, inputs: tuple[str, ...], constants: dict[str, Any]) -> Any:
    """All modules as one, from tensors to the vector."""
    import torch

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(list(model))

        def forward(self, *tensors: Any) -> Any:
            features = {**constants, **dict(zip(inputs, tensors, strict=True))}
            for part in self.parts:
                features = part(features)
            embedding = features["sentence_embedding"].to(torch.float32)
            return embedding if model.truncate_dim is None else embedding[:, : model.truncate_dim]

    return Whole().eval()


def quantise(graph: Path) -> None:
    """Weights of matrix products as int8, each column with a scale of its own; activations are quantised at run time.

    Of seven bits, so that no processor's instructions saturate: the same vectors on each.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    whole = [path for path in graph.parent.iterdir() if path.name.startswith(graph.name)]
    small = graph.with_name("int8.onnx")
    quantize_dynamic(
        graph,
        small,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,
        weight_type=QuantType.QInt8,
    )
    for path in whole:
        path.unlink()
    small.rename(graph)


def parity(reference: SentenceTransformersEncoder, candidate: OnnxEncoder) -> float:
    """The least cosine over the corpus, in batches of like length and padded to the longest alike."""
    texts = corpus(reference)
    wanted = reference.encode(texts)
    short = texts[:-1]
    _, unsorted = candidate._prepared(short)
    found = np.concatenate([candidate.encode(texts), candidate._embed(list(unsorted))]).astype(np.float64)
    cosines = (np.concatenate([wanted, wanted[: len(short)]]) * found).sum(axis=1)
    return min(1.0, float(cosines.min()))


def corpus(encoder: SentenceTransformersEncoder) -> list[str]:
    """The fixed texts, and at the end one that is longer than the model reads."""
    texts: list[str] = json.loads((files("connectors.encoder") / "parity.json").read_text(encoding="utf-8"))
    prose = max(texts, key=len)
    tokens = len(encoder._plain.encode(prose, add_special_tokens=False))
    return [*texts, " ".join([prose] * (encoder.max_tokens // tokens + 2))]


if __name__ == "__main__":
    main(*sys.argv[1:])
