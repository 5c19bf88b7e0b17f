"""What each way to quantize costs in accuracy: on trained models, and on twins of them that are hostile to a format.

    python -m benchmarks.quantization [--fresh]

The stock tools run in an environment of their own (made from requirements-peers.txt) on the plain export; vitdeploy
runs through its own export and eval. All are calibrated on the same 128 images and answer the same test images. Writes
benchmarks/quantization.md; rows that are in it already are kept unless --fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.fashion_mnist import data as fashion
from benchmarks.half import in_true_half
from benchmarks.tables import machine, rows_of, written
from benchmarks.venvs import packages, run_in
from vitdeploy import environment, sources
from vitdeploy import recipe as recipes
from vitdeploy.artifact import load
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.data.dataset import batches
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.evidence import Eval
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.accuracy import compare_accuracy
from vitdeploy.progress import Silent
from vitdeploy.recipe import ModelSpec
from vitdeploy.render.numbers import drop
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.session import Array
from vitdeploy.tasks.classification import Classification

TABLE = Path(__file__).with_suffix(".md")
PEERS = Path(__file__).with_name("peers.py")
CALIBRATION_IMAGES = 128
HALF_IMAGES = 300
"""onnx's reference evaluator takes a tenth of a second for each."""
_CHUNK = 500
COLUMNS = ("model", "way", "images", "FP32 top-1", "top-1", "drop, points [95 %]", "agreement", "p", "found")


@dataclass(frozen=True)
class Subject:
    """A model as vitdeploy's MODEL, and where its images are from."""

    title: str
    spec: str
    calibration: str
    evaluation: str

    @cached_property
    def model(self) -> sources.LoadedModel:
        """PyTorch's module, with its preprocessing."""
        return sources.load(ModelSpec(spec=self.spec), size=None)

    def images(self, split: Any, limit: int | None) -> tuple[Array, Array]:
        """Images as the model takes them, and labels, in the order in which vitdeploy reads them."""
        name = self.calibration if split == "calibration" else self.evaluation
        dataset = open_dataset(name, self.model.preprocess, labels=None, need_labels=True, split=split)
        pixels, labels = zip(*batches(dataset, 1, limit), strict=True)
        return to_input(np.concatenate(pixels), self.model.preprocess, "normalized"), np.concatenate(labels)

    @cached_property
    def test(self) -> tuple[Array, Array, Array]:
        """Test images, labels, and the logits of PyTorch."""
        images, labels = self.images("evaluation", None)
        session = TorchSession(self.model.module)
        answers = [session.run({"input": images[i : i + _CHUNK]}) for i in range(0, len(images), _CHUNK)]
        return images, labels, np.concatenate([next(iter(answer.values())) for answer in answers])

    def judged(self, logits: Array) -> Eval:
        """Logits for the first test images against PyTorch's."""
        _, labels, reference = self.test
        task, n = Classification(), len(logits)
        before, after = ({"logits": x[:n]} for x in (reference, logits))
        first, second = (task.statistics(x, labels[:n]) for x in (before, after))
        return compare_accuracy("classification", task, first.values, second.values, task.agreement(before, after))


Way = Callable[[Subject, Path], tuple[Eval, str]]
"""Quantize into a folder; the accuracy, and what the way found out."""


# ------------------------------------------------------------------------------------------------------- vitdeploy


def vitdeploy(target: str, precision: str) -> Way:
    """Through `export` and `eval`."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        _export(subject, folder / "out", target, precision)
        return evaluate(folder / "out", subject.evaluation, Silent()), _found(folder / "out")

    return way


def vitdeploy_without_vnni(target: str, precision: str) -> Way:
    """The same artifact as a CPU without INT8 dot products gets: weights of 7 bits, which saturate nowhere."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        host = environment.host().model_copy(update={"isa": ("avx2",)})
        with mock.patch.object(environment, "host", return_value=host):
            return vitdeploy(target, precision)(subject, folder)

    return way


def vitdeploy_graph(target: str, device: str, precision: str) -> Way:
    """The graph that the target's compiler is fed, run by ONNX Runtime operator by operator: no GPU is here."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        _export(subject, folder / "out", target, precision, device)
        images, _, _ = subject.test
        with OnnxSession(folder / "out" / GRAPH, lean=True) as session:
            name = load(folder / "out").manifest.inputs[0].name
            logits = np.concatenate([next(iter(session.run({name: image[None]}).values())) for image in images])
        return subject.judged(logits), _found(folder / "out")

    return way


def _export(subject: Subject, out: Path, target: str, precision: str, device: str | None = None) -> None:
    recipe = recipes.compose(
        subject.spec, target=target, device=device, precision=precision, calibration=subject.calibration
    )
    export(recipe, out, Silent())


def _found(out: Path) -> str:
    manifest = load(out).manifest
    record, precision = manifest.quantized, manifest.target.precision
    ranges, bias = record.get("ranges"), record.get("bias_correction")
    method = record.get("method") if precision == "fp16" else None
    parts = [method, _migration(record), ranges and precision != "fp16" and f"{ranges} ranges"]
    return ", ".join([*filter(None, parts), *(["bias corrected"] if bias == "on" else [])])


def _migration(record: Any) -> str | None:
    said = record.get("migration")
    return said and (f"migration {said.partition(',')[0].removeprefix('alpha ')}" if said != "off" else "no migration")


# --------------------------------------------------------------------------------------------------- stock tools


def stock(name: str) -> Way:
    """One of `peers.py`'s ways, on the plain export."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        _plain(subject, folder / "model.onnx", dynamo=True)
        calibration, _ = subject.images("calibration", CALIBRATION_IMAGES)
        np.savez(folder / "images.npz", calibration=calibration, test=subject.test[0])
        run_in("peers", PEERS, folder, name)
        return subject.judged(np.load(folder / f"{name}.npz")["logits"]), ""

    return way


def _plain(subject: Subject, path: Path, *, dynamo: bool, opset: int | None = None) -> None:
    example = torch.from_numpy(subject.test[0][:1])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            subject.model.module, (example,), str(path), dynamo=dynamo, opset_version=opset, verbose=False,
            **({"external_data": False} if dynamo else {}),
        )  # fmt: skip


# --------------------------------------------------------------------------------------------------- half precision


def stock_half(*, opset: int) -> Way:
    """ONNX Runtime's converter on the legacy exporter's graph, which has LayerNormalization from opset 17 on."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        _plain(subject, folder / "model.onnx", dynamo=False, opset=opset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of each weight that float16 cannot tell from 0
            half = convert_float_to_float16(onnx.load(folder / "model.onnx"))
        return _in_true_half(subject, half), ""

    return way


def vitdeploy_half(subject: Subject, folder: Path) -> tuple[Eval, str]:
    """The graph that TensorRT-RTX is fed, in true half precision."""
    _export(subject, folder / "out", "tensorrt-rtx", "fp16")
    return _in_true_half(subject, onnx.load(folder / "out" / GRAPH)), _found(folder / "out")


def _in_true_half(subject: Subject, model: onnx.ModelProto) -> Eval:
    return subject.judged(in_true_half(model, subject.test[0][:HALF_IMAGES]).astype(np.float32))


INT8_WAYS: dict[str, Way] = {
    "NNCF, OpenVINO": stock("nncf"),
    "NNCF without SmoothQuant, OpenVINO": stock("nncf-no-smoothquant"),
    "ORT quantize_static": stock("ort-static"),
    "ORT quantize_dynamic": stock("ort-dynamic"),
    "ORT quantize_dynamic, reduce_range": stock("ort-dynamic-reduce-range"),
    "**vitdeploy** openvino int8": vitdeploy("openvino", "int8"),
    "**vitdeploy** openvino int8-dynamic": vitdeploy("openvino", "int8-dynamic"),
    "**vitdeploy** onnxruntime int8": vitdeploy("onnxruntime", "int8"),
    "**vitdeploy** onnxruntime int8-dynamic": vitdeploy("onnxruntime", "int8-dynamic"),
    "**vitdeploy** onnxruntime int8, without VNNI": vitdeploy_without_vnni("onnxruntime", "int8"),
    "**vitdeploy** onnxruntime int8-dynamic, without VNNI": vitdeploy_without_vnni("onnxruntime", "int8-dynamic"),
    "**vitdeploy** tensorrt-rtx int8, graph": vitdeploy_graph("tensorrt-rtx", "sm86", "int8"),
    "**vitdeploy** tensorrt-rtx fp8, graph": vitdeploy_graph("tensorrt-rtx", "sm89", "fp8"),
}
FP16_WAYS: dict[str, Way] = {
    "ORT float16, LayerNorm as primitives": stock_half(opset=16),
    "ORT float16, LayerNormalization": stock_half(opset=17),
    "**vitdeploy** tensorrt-rtx fp16": vitdeploy_half,
}


def subjects(folder: Path) -> Iterator[tuple[Subject, dict[str, Way]]]:
    """The models with the ways that each is put through; `folder` is for their images."""
    calibration, test = fashion.calibration_subset(fashion.read_split("train")), fashion.read_split("test")
    files = []
    for name, images in (("calibration", calibration), ("test", test)):
        files.append(str(folder / f"{name}.npz"))
        np.savez(files[-1], images=images.images, labels=images.labels)
    twins = "python:benchmarks.fashion_mnist.hostile"
    own = "python:benchmarks.hostile"
    yield Subject("digits", "demo:digits", "demo:digits", "demo:digits"), INT8_WAYS
    yield Subject("digits, INT8-hostile", f"{own}:digits_int8", "demo:digits", "demo:digits"), INT8_WAYS
    yield Subject("Fashion-MNIST", f"{twins}:trained", *files), INT8_WAYS
    yield Subject("Fashion-MNIST, INT8-hostile", f"{twins}:int8_hostile", *files), INT8_WAYS
    yield Subject("digits, FP16-hostile", f"{own}:digits_fp16", "demo:digits", "demo:digits"), FP16_WAYS
    yield Subject("Fashion-MNIST, FP16-hostile", f"{twins}:fp16_hostile", *files), FP16_WAYS


def main() -> None:
    """Put every model through its ways and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure again what the table has already")
    rows = [] if parser.parse_args().fresh else rows_of(TABLE, COLUMNS)
    with tempfile.TemporaryDirectory() as images:
        for subject, ways in subjects(Path(images)):
            for title, way in ways.items():
                if (subject.title, title) in {row[:2] for row in rows}:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(_row(subject.title, title, *way(subject, Path(folder))))
                print(*rows[-1], sep=" | ", flush=True)
                written(TABLE, _heading(), COLUMNS, rows)


def _row(model: str, way: str, found: Eval, note: str) -> tuple[str, ...]:
    top1 = found.metrics["top1"]
    return (
        model, way, f"{found.n:,}", f"{top1.reference:.2f}", f"{top1.deployed:.2f}", drop(top1),
        f"{100 * found.agreement:.2f} %", f"{found.p_value:.2g}", note,
    )  # fmt: skip


def _heading() -> list[str]:
    return [
        "# Accuracy after quantization",
        "",
        "Made by `python -m benchmarks.quantization`, calibrated on 128 images. The drop is FP32 - deployed, in points",
        "of top-1 with its paired 95 % interval (Tango's); below 0 the quantized model is better. Agreement: the same",
        "class as FP32. p: exact McNemar test. INT8-hostile and FP16-hostile twins compute the same FP32 function",
        "(`benchmarks/hostile.py`).",
        "",
        "- *graph*: the graph that the compiler is fed, run by ONNX Runtime operator by operator: no GPU is here.",
        "- *without VNNI*: exported as on a CPU without INT8 dot products, with weights of 7 bits. (Its numbers are",
        "  the same there: nothing saturates.)",
        "- FP16 is computed in true half precision, by onnx's reference evaluator with LayerNormalization in FP32.",
        "",
        machine("torch", "onnxruntime", "openvino"),
        f"Stock tools: {', '.join(packages('peers'))}, on torch's own export.",
    ]


if __name__ == "__main__":
    main()
