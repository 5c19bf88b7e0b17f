"""Measure the accuracy that each way to quantize costs, on trained models and on twins that are hostile to a format.

    python -m benchmarks.quantization [--fresh]

The stock tools run on the plain export, in an environment of their own that is made from requirements-peers.txt.
vitdeploy runs through its own export and eval; rows with NNCF as its quantizer need the extra `quantize`. All are
calibrated on the same 128 images and classify the same test images. Writes benchmarks/quantization.md. Rows that are in
it already are kept, unless --fresh is given.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import numpy as np
import onnx
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

from benchmarks.fashion_mnist import data as fashion
from benchmarks.half import compute_in_half
from benchmarks.tables import describe_machine, read_rows, write_page
from benchmarks.venvs import read_pins, run_in_venv
from vitdeploy import environment, sources
from vitdeploy import recipe as recipes
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import GRAPH
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.data.dataset import Split, batches
from vitdeploy.data.labels import Label
from vitdeploy.data.opening import open_dataset
from vitdeploy.data.preprocess import to_input
from vitdeploy.evidence import Eval
from vitdeploy.frozen import replace
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
_CHUNK = 500  # images that PyTorch gets at once
COLUMNS = ("model", "way", "images", "FP32 top-1", "top-1", "drop, points [95 %]", "agreement", "p", "settings")


@dataclass(frozen=True)
class Subject:
    """A model and its images.

    Attributes:
        title: its name in the table.
        spec: MODEL of vitdeploy's command line.
        calibration: DATA to calibrate on.
        evaluation: DATA to classify.
    """

    title: str
    spec: str
    calibration: str
    evaluation: str

    @cached_property
    def model(self) -> sources.LoadedModel:
        """The model with its preprocessing."""
        return sources.load(ModelSpec(spec=self.spec), size=None)

    @property
    def module(self) -> torch.nn.Module:
        """PyTorch's module."""
        assert self.model.module is not None
        return self.model.module

    def read_images(self, split: Split, limit: int | None) -> tuple[Array, list[Label]]:
        """Read images as the model takes them, and their labels, in the order in which vitdeploy reads them."""
        name = self.calibration if split == "calibration" else self.evaluation
        dataset = open_dataset(name, self.model.preprocess, labels=None, need_labels=True, split=split)
        pixels, labels = zip(*batches(dataset, 1, limit), strict=True)
        images = to_input(np.concatenate(pixels), self.model.preprocess, "normalized")
        return images, [label for batch in labels for label in batch]

    @cached_property
    def test(self) -> tuple[Array, list[Label], Array]:
        """Test images, their labels, and PyTorch's logits."""
        images, labels = self.read_images("evaluation", None)
        session = TorchSession(self.module)
        chunks = (session.run({"input": images[i : i + _CHUNK]}) for i in range(0, len(images), _CHUNK))
        return images, labels, np.concatenate([first_output(outputs) for outputs in chunks])

    def judge(self, logits: Array) -> Eval:
        """Compare the logits of the first test images with PyTorch's."""
        _, labels, reference = self.test
        task, n = Classification(), len(logits)
        before, after = ({"logits": x[:n]} for x in (reference, logits))
        first, second = (task.statistics(x, labels[:n]) for x in (before, after))
        return compare_accuracy(
            "classification", task, first.values, second.values, task.compare_outputs(before, after)
        )


Way = Callable[[Subject, Path], tuple[Eval, str]]
"""Quantizes a model in a folder; returns its accuracy and the settings that were chosen."""


def first_output(outputs: Mapping[str, Array]) -> Array:
    """Return the first output of a session, which is the logits."""
    return next(iter(outputs.values()))


# ------------------------------------------------------------------------------------------------------- vitdeploy


def with_vitdeploy(
    target: str, precision: str, quantizer: str | None = None, smooth_alpha: Literal["auto", "norms"] = "auto"
) -> Way:
    """Return the way through `export` and `eval`, with vitdeploy's own quantizer or another one."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        out = folder / "out"
        artifact = _export(subject, out, target, precision, quantizer=quantizer, smooth_alpha=smooth_alpha)
        return evaluate(artifact, subject.evaluation, Silent()), _settings(artifact)

    return way


def with_vitdeploy_without_vnni(target: str, precision: str) -> Way:
    """Return the same way as on a CPU without INT8 dot products, where weights have 7 bits and no sum saturates."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        host = replace(environment.host(), isa=("avx2",))
        with mock.patch.object(environment, "host", return_value=host):
            return with_vitdeploy(target, precision)(subject, folder)

    return way


def with_vitdeploy_graph(target: str, device: str, precision: str) -> Way:
    """Return the way that runs the compiler's input in ONNX Runtime, operator by operator: there is no GPU here."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        artifact = _export(subject, folder / "out", target, precision, device)
        name = artifact.manifest.inputs[0].name
        with OnnxSession(artifact.file(GRAPH), lean=True) as session:
            logits = [first_output(session.run({name: image[None]})) for image in subject.test[0]]
        return subject.judge(np.concatenate(logits)), _settings(artifact)

    return way


def _export(
    subject: Subject,
    out: Path,
    target: str,
    precision: str,
    device: str | None = None,
    *,
    quantizer: str | None = None,
    smooth_alpha: Literal["auto", "norms"] = "auto",
) -> Artifact:
    recipe = recipes.compose(
        subject.spec,
        target=target,
        device=device,
        precision=precision,
        quantizer=quantizer,
        calibration=subject.calibration,
    )
    recipe = replace(recipe, precision=replace(recipe.precision, smooth_alpha=smooth_alpha))
    return export(recipe, out, Silent()).artifact


def _settings(artifact: Artifact) -> str:
    """Return the settings that quantization chose."""
    record = artifact.manifest.quantized
    if record is None:
        return ""
    settings = [record.method] if artifact.manifest.target.precision == "fp16" else []
    if record.migration is not None:
        settings.append("norms folded" if record.migration.norms else f"migration {record.migration.alpha:g}")
    elif record.tried:
        settings.append("no migration")
    if record.ranges is not None:
        settings.append(f"{record.ranges} ranges")
    if record.bias_correction:
        settings.append("bias corrected")
    return ", ".join(settings)


# --------------------------------------------------------------------------------------------------- stock tools


def with_peer(name: str) -> Way:
    """Return one of the ways of `peers.py`, on the plain export."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        _export_plain(subject, folder / "model.onnx", dynamo=True)
        calibration, _ = subject.read_images("calibration", CALIBRATION_IMAGES)
        np.savez(folder / "images.npz", calibration=calibration, test=subject.test[0])
        run_in_venv("peers", PEERS, folder, name)
        return subject.judge(np.load(folder / f"{name}.npz")["logits"]), ""

    return way


def _export_plain(subject: Subject, path: Path, *, dynamo: bool, opset: int | None = None) -> None:
    example = torch.from_numpy(subject.test[0][:1])
    options: dict[str, Any] = {"external_data": False} if dynamo else {}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            subject.module, (example,), str(path), dynamo=dynamo, opset_version=opset, verbose=False, **options
        )


# --------------------------------------------------------------------------------------------------- half precision


def with_ort_float16(*, opset: int) -> Way:
    """Return ONNX Runtime's converter on the legacy exporter's graph, which has LayerNormalization from opset 17 on."""

    def way(subject: Subject, folder: Path) -> tuple[Eval, str]:
        _export_plain(subject, folder / "model.onnx", dynamo=False, opset=opset)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one for each weight that float16 rounds to 0
            half = convert_float_to_float16(onnx.load(folder / "model.onnx"))
        return _judge_in_half(subject, half), ""

    return way


def with_vitdeploy_in_half(subject: Subject, folder: Path) -> tuple[Eval, str]:
    """Compute the graph that TensorRT-RTX gets, in true half precision."""
    artifact = _export(subject, folder / "out", "tensorrt-rtx", "fp16")
    return _judge_in_half(subject, onnx.load(artifact.file(GRAPH))), _settings(artifact)


def _judge_in_half(subject: Subject, model: onnx.ModelProto) -> Eval:
    return subject.judge(compute_in_half(model, subject.test[0][:HALF_IMAGES]).astype(np.float32))


INT8_WAYS: dict[str, Way] = {
    "NNCF, OpenVINO": with_peer("nncf"),
    "NNCF without SmoothQuant, OpenVINO": with_peer("nncf-no-smoothquant"),
    "ORT quantize_static": with_peer("ort-static"),
    "ORT quantize_dynamic": with_peer("ort-dynamic"),
    "ORT quantize_dynamic, reduce_range": with_peer("ort-dynamic-reduce-range"),
    "**vitdeploy** openvino int8": with_vitdeploy("openvino", "int8"),
    "**vitdeploy** openvino int8, norms folded": with_vitdeploy("openvino", "int8", smooth_alpha="norms"),
    "**vitdeploy** openvino int8 by NNCF": with_vitdeploy("openvino", "int8", "nncf"),
    "**vitdeploy** openvino int8-dynamic": with_vitdeploy("openvino", "int8-dynamic"),
    "**vitdeploy** onnxruntime int8": with_vitdeploy("onnxruntime", "int8"),
    "**vitdeploy** onnxruntime int8 by NNCF": with_vitdeploy("onnxruntime", "int8", "nncf"),
    "**vitdeploy** onnxruntime int8-dynamic": with_vitdeploy("onnxruntime", "int8-dynamic"),
    "**vitdeploy** onnxruntime int8, without VNNI": with_vitdeploy_without_vnni("onnxruntime", "int8"),
    "**vitdeploy** onnxruntime int8-dynamic, without VNNI": with_vitdeploy_without_vnni("onnxruntime", "int8-dynamic"),
    "**vitdeploy** openvino int4-weights": with_vitdeploy("openvino", "int4-weights"),
    "**vitdeploy** openvino int4-weights by NNCF": with_vitdeploy("openvino", "int4-weights", "nncf"),
    "**vitdeploy** tensorrt-rtx int8, graph": with_vitdeploy_graph("tensorrt-rtx", "sm86", "int8"),
    "**vitdeploy** tensorrt-rtx fp8, graph": with_vitdeploy_graph("tensorrt-rtx", "sm89", "fp8"),
}
FP16_WAYS: dict[str, Way] = {
    "ORT float16, LayerNorm as primitives": with_ort_float16(opset=16),
    "ORT float16, LayerNormalization": with_ort_float16(opset=17),
    "**vitdeploy** tensorrt-rtx fp16": with_vitdeploy_in_half,
}


def all_subjects(folder: Path) -> Iterator[tuple[Subject, dict[str, Way]]]:
    """Yield the models with their ways; `folder` is for the images of Fashion-MNIST."""
    fashion.save_sets(folder)
    images = [str(folder / f"{name}.npz") for name in ("calibration", "test")]
    digits = ["demo:digits"] * 2
    twins_of_fashion, twins_of_digits = "python:benchmarks.fashion_mnist.hostile", "python:benchmarks.hostile"
    yield Subject("digits", "demo:digits", *digits), INT8_WAYS
    yield Subject("digits, INT8-hostile", f"{twins_of_digits}:digits_int8", *digits), INT8_WAYS
    yield Subject("Fashion-MNIST", f"{twins_of_fashion}:load_trained", *images), INT8_WAYS
    yield Subject("Fashion-MNIST, INT8-hostile", f"{twins_of_fashion}:int8_hostile", *images), INT8_WAYS
    yield Subject("digits, FP16-hostile", f"{twins_of_digits}:digits_fp16", *digits), FP16_WAYS
    yield Subject("Fashion-MNIST, FP16-hostile", f"{twins_of_fashion}:fp16_hostile", *images), FP16_WAYS


def main() -> None:
    """Quantize every model in its ways, and write the table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", action="store_true", help="measure rows again that the table has already")
    rows = [] if parser.parse_args().fresh else read_rows(TABLE, COLUMNS)
    with tempfile.TemporaryDirectory() as images:
        subjects = list(all_subjects(Path(images)))
        order = [(subject.title, title) for subject, ways in subjects for title in ways]
        for subject, ways in subjects:
            for title, way in ways.items():
                if (subject.title, title) in {row[:2] for row in rows}:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(_row(subject.title, title, *way(subject, Path(folder))))
                print(*rows[-1], sep=" | ", flush=True)
                write_page(TABLE, _heading(), COLUMNS, sorted(rows, key=lambda row: order.index((row[0], row[1]))))


def _row(model: str, way: str, evaluation: Eval, settings: str) -> tuple[str, ...]:
    top1 = evaluation.metrics["top1"]
    return (
        model, way, f"{evaluation.n:,}", f"{top1.reference:.2f}", f"{top1.deployed:.2f}", drop(top1),
        f"{100 * evaluation.agreement:.2f} %", f"{evaluation.p_value:.2g}", settings,
    )  # fmt: skip


def _heading() -> list[str]:
    return [
        "# Accuracy after quantization",
        "",
        "Made by `python -m benchmarks.quantization`; every way is calibrated on 128 images. The drop is FP32 -",
        "deployed, in points of top-1, with its paired 95 % interval (Tango's); below 0 the quantized model is better.",
        "Agreement: images that get the same class as in FP32. p: exact McNemar test. Settings: those that vitdeploy",
        "chose. The INT8-hostile and FP16-hostile twins compute the same FP32 function (`benchmarks/hostile.py`).",
        "",
        "- *graph*: the graph that the compiler gets, run by ONNX Runtime operator by operator, because there is no",
        "  GPU here.",
        "- *without VNNI*: exported as on a CPU without INT8 dot products, with weights of 7 bits. Such a CPU gives",
        "  the same numbers, because nothing saturates.",
        "- FP16 is computed in true half precision, by onnx's reference evaluator with LayerNormalization in FP32.",
        "",
        describe_machine("torch", "onnxruntime", "openvino"),
        f"Stock tools: {', '.join(read_pins('peers'))}, on torch's own export.",
    ]


if __name__ == "__main__":
    main()
