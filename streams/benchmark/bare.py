"""Encoders alone, each in a process of its own: `python -m streams.benchmark.bare onnx|torch TEXTS`.

`onnx`: the encoder of a worker, one thread, its texts sorted by length. `torch`: `SentenceTransformer.encode` with all
its defaults and as many threads as it likes. A child loads the model, embeds a few texts, says "ready", waits for a
line, embeds all of its texts and says what it took as JSON.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from schemas.names import ModelName
from schemas.spec import ModelSpec
from streams.benchmark.line import KEPT, NotMeasured, plain_environment
from streams.settings import Settings

Runtime = Literal["onnx", "torch"]
#: Embedded before the clock starts.
WARM: Final = 16


@dataclass(frozen=True, slots=True)
class Bare:
    """`seconds`: from the word to begin until the last process has ended; `resident_mib`: of the greatest one."""

    seconds: float
    cpu_seconds: float
    resident_mib: float


def run(runtime: Runtime, texts: Sequence[str], processes: int, folder: Path) -> Bare:
    """`processes` share the texts, every n-th each, and begin together. Raises NotMeasured."""
    from infra.stack.processes import tied_to

    children: list[subprocess.Popen[str]] = []
    out = (folder / "bare.log").open("ab")
    try:
        for number in range(processes):
            path = folder / f"texts-{runtime}-{number}.json"
            path.write_text(json.dumps(texts[number::processes]), encoding="utf-8")
            children.append(
                subprocess.Popen(
                    [sys.executable, "-m", "streams.benchmark.bare", runtime, str(path)],
                    env=_environment(),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    text=True,
                    preexec_fn=tied_to(os.getpid()),  # noqa: PLW1509  nothing here forks with locks held
                )
            )
        for child in children:
            if _line(child) != "ready":
                raise NotMeasured(f"the bare {runtime} encoder did not start; see {out.name}")
        begun = time.monotonic()
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        said = [json.loads(_line(child)) for child in children]
        return Bare(
            time.monotonic() - begun,
            sum(each["cpu_seconds"] for each in said),
            max(each["resident_mib"] for each in said),
        )
    finally:
        out.close()
        for child in children:
            child.kill()
            child.wait()


def model_settings() -> Settings:
    """The defaults, but for the model that the environment names."""
    given = {"name": os.environ.get("UPWELL_MODEL_NAME"), "runtime": os.environ.get("UPWELL_MODEL_RUNTIME")}
    return Settings(model=ModelSpec(**{name: value for name, value in given.items() if value}))


def _environment() -> dict[str, str]:
    """Model and cache as everywhere in the benchmark; no thread is set free or bound by it."""
    return {**plain_environment(), **{name: os.environ[name] for name in KEPT & set(os.environ)}}


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise NotMeasured(f"a bare encoder ended with {child.wait()}")
    return line.strip()


def _encoder(runtime: str) -> Any:
    """A function that embeds texts."""
    settings = model_settings()
    if runtime == "onnx":
        from streams.models import encoder_of

        return encoder_of(settings, settings.model.name, _to_stderr).encode
    from sentence_transformers import SentenceTransformer

    from connectors.encoder.directory import model_directory, quiet

    directory = model_directory(settings.model.name)
    quiet(offline=directory is not None)
    model = SentenceTransformer(str(directory or ModelName.parse(settings.model.name).place))
    return lambda texts: model.encode(texts, show_progress_bar=False)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def main() -> None:
    runtime, path = sys.argv[1:]
    texts = json.loads(Path(path).read_text(encoding="utf-8"))
    encode = _encoder(runtime)
    encode(texts[:WARM])
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    encode(texts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"cpu_seconds": time.process_time() - before, "resident_mib": peak}), flush=True)


if __name__ == "__main__":
    main()
