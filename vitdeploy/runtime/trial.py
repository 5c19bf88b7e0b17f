"""Try a model that comes from a file in a process of its own, before this process loads and runs it."""

from __future__ import annotations

import glob
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from vitdeploy import apart, sources
from vitdeploy.artifact.temporary import remove_process_folders
from vitdeploy.errors import SourceError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.limits import MAX_TRIAL_BYTES, MAX_TRIAL_SECONDS
from vitdeploy.recipe import ModelSpec
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.session import Session

_MEMORY_PER_BYTE = 8  # of the model's file: a reader, a graph and an engine have a copy each
_tried: set[tuple[object, ...]] = set()
"""The models that this process has tried: each with its arguments, and the size and time of its file."""


class _Trial(BaseModel):
    model_config = ConfigDict(frozen=True)
    model: ModelSpec
    size: tuple[int, int] | None
    batch: int


def try_model(spec: ModelSpec, size: tuple[int, int] | None, batch: int) -> None:
    """Load a `FILE.onnx` or `FILE.pt2` and run it in another process. Other models are not tried.

    Args:
        spec: the model.
        size: height and width of its images; None for its own. A range is run at each size that is verified.
        batch: the number of images to run it on.

    Raises:
        SourceError: it is refused, crashes, or goes beyond the limits of time and memory.
    """
    path = sources.find_file(spec.spec)
    if path is None or not path.is_file():  # loading says what is wrong
        return
    facts = path.stat()
    arguments = (
        size,
        batch,
        str(spec.size_range),
        str(spec.kwargs),
        str(spec.bind),
        str(spec.inputs),
        spec.weights,
        spec.outputs,
    )
    key = (str(path.resolve()), facts.st_size, facts.st_mtime_ns, *arguments)
    if key in _tried:
        return
    task = _Trial(model=spec, size=size, batch=batch).model_dump_json().encode()
    run_limited(__name__, task, f"loading and running {path}", _size_with_data(path))
    _tried.add(key)


def run_limited(module: str, task: bytes, what: str, model_bytes: int) -> bytes:
    """Run a child within the limits for models that come from files.

    Args:
        module: see `apart.run`.
        task: see `apart.run`.
        what: what the child does, as the subject of a sentence.
        model_bytes: the size of the model.

    Raises:
        SourceError: the child refuses the task, crashes, or goes beyond a limit.
    """
    seconds, memory = MAX_TRIAL_SECONDS.value, MAX_TRIAL_BYTES.value + _MEMORY_PER_BYTE * model_bytes
    try:
        return apart.run(module, task, seconds=seconds, memory=memory)
    except apart.Refused as error:
        raise SourceError(error.message, fix=error.fix) from None
    except apart.Failed as error:
        fix = "Simplify the model, or report the crash to the makers of the engine."
        if "took more than" in error.reason:
            fix = MAX_TRIAL_SECONDS.fix
        elif "memory" in error.reason:
            fix = MAX_TRIAL_BYTES.fix
        raise SourceError(f"{what} {error.reason}", fix=fix) from None


def _size_with_data(path: Path) -> int:
    """Return the bytes of the file and of files beside it whose names begin with its name: its weights."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{glob.escape(path.stem)}*") if file.is_file())


def _work(task: bytes) -> bytes:
    """Load the model, and run it once."""
    trial = _Trial.model_validate_json(task)
    try:
        model = sources.load(trial.model, size=trial.size)
        sizes = trial.model.size_range
        with _open(model) as session:
            for size in (model.preprocess.size,) if sizes is None else sizes.corners:
                shape = (trial.batch, *model.preprocess.sample_shape[:-2], *size)
                further = model.further.take(trial.batch)
                session.run({model.input_name: np.full(shape, 0.5, np.float32), **further})
    finally:
        remove_process_folders()
    return b""


def _open(model: sources.LoadedModel) -> Session:
    if model.module is not None:
        return TorchSession(model.module, outputs=model.outputs)
    assert model.onnx is not None
    return OnnxSession(model.onnx)


if __name__ == "__main__":
    apart.answer(_work)
