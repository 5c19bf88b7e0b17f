"""A demo artifact, served by Triton from the unedited repository of `vitdeploy package --for triton --backend python`.

    python -m benchmarks.served

The digits are exported for both CPU targets and packaged with an ensemble. Triton (`benchmarks/tritonserver.py`) serves
the package, and answers 1,000 requests of each kind over HTTP. Every answer is compared: the outputs with those of a
bare session, the classes with those of `predict`; a difference beyond rounding ends the script. Writes
benchmarks/served.md.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

import vitdeploy
from benchmarks.tables import describe_machine, write_page
from benchmarks.tritonserver import Client, serve
from benchmarks.venvs import ToolError, read_pins
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.commands.export import export
from vitdeploy.commands.package import package
from vitdeploy.commands.predict import Deployed
from vitdeploy.data.array_files import read_npz
from vitdeploy.data.preprocess import apply
from vitdeploy.evidence.predictions import Answer
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array

TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("target", "what answers", "clients", "requests", "largest difference", "p50 ms", "p99 ms", "images/s")
TARGETS = ("onnxruntime", "openvino")
REQUESTS, CLIENTS = 1000, 4
BATCH = "1:4:8"
T = TypeVar("T")
_WARM_UP = 50
_ROUNDING = 1e-4  # logits reach 5, and a joined batch takes other kernels than one image
HEADING = (
    "# Served by Triton",
    "",
    "Does Triton serve what `vitdeploy package --for triton --backend python --ensemble` writes, and what does a",
    "request cost? The digits ({batch} images a batch), exported in FP32 for each target. Triton's program serves the",
    "package unedited, on the same cores as the clients. Each request is one image, over HTTP on the loopback.",
    "",
    "- *bare session*: `run` of the artifact's session in the process of the client, as `load` opens it.",
    "- *Triton, tensor*: the model; the client prepares the image. The outputs are compared with the session's.",
    "- *Triton, PNG*: the ensemble: decoding, preprocessing, the model, softmax and labels. Classes, their order and",
    "  their labels are those of `predict`; the difference is that of the probabilities.",
    "",
    "With {clients} clients, requests wait for each other, and Triton may join some into one batch. p50 and p99 are",
    "those of a request.",
    "Written by `python -m benchmarks.served`, with {pins}.",
    "",
    "{machine}",
)  # fmt: skip


def main() -> None:
    """Measure both targets, and write the page."""
    rows = [row for target in TARGETS for row in measure(target, REQUESTS)]
    pins = ", ".join(read_pins("triton"))
    machine = describe_machine("onnxruntime", "openvino")
    facts = {"batch": BATCH, "clients": CLIENTS, "pins": pins, "machine": machine}
    write_page(TABLE, [line.format(**facts) for line in HEADING], COLUMNS, rows)


def measure(target: str, requests: int) -> list[tuple[str, ...]]:
    """Export, package, serve and compare; return the rows of the table.

    Raises:
        ToolError: the server cannot run here, or an answer differs beyond rounding.
    """
    images = read_npz(Path(vitdeploy.__file__).parent / "assets" / "digits.npz", "")["images"][:requests]
    with tempfile.TemporaryDirectory(prefix="vitdeploy-served-") as folder:
        recipe = recipes.compose("demo:digits", target=target, batch=BATCH)
        artifact = export(recipe, Path(folder, "artifact"), Silent(), cache=GraphCache()).artifact
        options = {"backend": "python", "ensemble": True, "name": "digits"}
        package(artifact, "triton", Path(folder, "repository"), options)
        with Deployed(artifact.path) as deployed:
            answers: Sequence[Answer] = deployed.predict(list(images))
        tensors = [apply(image, artifact.manifest.preprocess)[None] for image in images]
        outputs, row = run_bare(artifact, tensors)
        rows = [(target, "bare session", "–", *row)]
        with serve(Path(folder, "repository")) as port:
            for clients in (1, CLIENTS):
                rows.append((target, "Triton, tensor", str(clients), *ask_for_outputs(port, clients, tensors, outputs)))
            rows.append((target, "Triton, PNG", "1", *ask_for_classes(port, list(images), answers)))
    return rows


def run_bare(artifact: Artifact, tensors: Sequence[Array]) -> tuple[list[Array], tuple[str, ...]]:
    """Return the outputs of a session in this process, and the cells of its row."""
    name, output = artifact.manifest.inputs[0].name, artifact.manifest.outputs[0].name
    with open_session(artifact, None) as session:
        for tensor in tensors[:_WARM_UP]:
            session.run({name: tensor})
        outputs, times, seconds = _time(lambda tensor: session.run({name: tensor})[output], tensors)
    return outputs, (str(len(tensors)), "–", *_describe(times, seconds))


def ask_for_outputs(port: int, clients: int, tensors: Sequence[Array], expected: Sequence[Array]) -> tuple[str, ...]:
    """Ask the model for the outputs of each tensor, and compare them."""

    def ask(share: Sequence[Array]) -> tuple[list[Array], list[float], float]:
        with Client(port) as client:
            for tensor in share[: _WARM_UP // clients]:
                client.infer("digits", {"input": tensor})
            return _time(lambda tensor: client.infer("digits", {"input": tensor})["output"], share)

    shares = [tensors[start::clients] for start in range(clients)]
    with ThreadPoolExecutor(clients) as pool:
        results = list(pool.map(ask, shares))
    outputs: list[Array | None] = [None] * len(tensors)
    for start, (answers, _, _) in enumerate(results):
        outputs[start::clients] = answers
    difference = float(np.abs(np.stack([o for o in outputs if o is not None]) - np.stack(expected)).max())
    if not difference <= _ROUNDING:
        raise ToolError(f"Triton's outputs differ from the session's by {difference:.2g}")
    times = [ms for _, part, _ in results for ms in part]
    return str(len(tensors)), f"{difference:.1e}", *_describe(times, max(seconds for _, _, seconds in results))


def ask_for_classes(port: int, images: Sequence[Array], expected: Sequence[Answer]) -> tuple[str, ...]:
    """Ask the ensemble for the classes of each image as a PNG, and compare them with those of `predict`."""
    files = [np.array([[to_png(image)]], np.object_) for image in images]
    with Client(port) as client:
        for file in files[:_WARM_UP]:
            client.infer("digits-images", {"IMAGE": file})
        answers, times, seconds = _time(lambda file: client.infer("digits-images", {"IMAGE": file}), files)
    difference = 0.0
    for answer, prediction in zip(answers, expected, strict=True):
        classes = [(int(i), label.decode()) for i, label in zip(answer["CLASS"][0], answer["LABEL"][0], strict=True)]
        if classes != [(guess.index, guess.label) for guess in prediction.top]:
            raise ToolError(f"Triton answers {classes}, and predict {prediction.top}")
        probabilities = np.array([guess.probability for guess in prediction.top])
        difference = max(difference, float(np.abs(answer["PROBABILITY"][0] - probabilities).max()))
    if not difference <= _ROUNDING:
        raise ToolError(f"Triton's probabilities differ from those of predict by {difference:.2g}")
    return str(len(files)), f"{difference:.1e}", *_describe(times, seconds)


def to_png(image: Array) -> bytes:
    """Return an image as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, "PNG")
    return content.getvalue()


def _time(ask: Callable[[Array], T], requests: Sequence[Array]) -> tuple[list[T], list[float], float]:
    """Return the answers, the milliseconds of each, and the seconds of all."""
    answers: list[T] = []
    times, first = [], time.perf_counter()
    for request in requests:
        start = time.perf_counter()
        answers.append(ask(request))
        times.append((time.perf_counter() - start) * 1e3)
    return answers, times, time.perf_counter() - first


def _describe(times: Sequence[float], seconds: float) -> tuple[str, str, str]:
    p50, p99 = np.percentile(times, [50, 99])
    return f"{p50:.2f}", f"{p99:.2f}", f"{len(times) / seconds:,.0f}"


if __name__ == "__main__":
    main()
