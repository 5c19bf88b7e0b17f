"""Measure what weight-only formats and BF16 save and cost: bytes, memory, time and accuracy.

    python -m benchmarks.weight_only speed [MODEL…] [--seconds S]
    python -m benchmarks.weight_only accuracy              needs the Debian package dataset-fashion-mnist

`speed` times the formats of one engine in turns in one process, against the same engine's float32, with random weights.
`accuracy` compares the Fashion-MNIST ViT and its INT8-hostile twin with float32 PyTorch on all 10,000 test images. Each
of the two replaces its own rows of benchmarks/weight_only.md and keeps the others.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from benchmarks import opened_memory
from benchmarks.fashion_mnist import data as fashion
from benchmarks.images import make_input
from benchmarks.opened_memory import open_model
from benchmarks.tables import describe_machine, format_doubts, format_ratio, format_table, read_rows
from vitdeploy import environment, passes, targets
from vitdeploy import recipe as recipes
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.measure.latency import measure
from vitdeploy.passes import order
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.render.numbers import drop
from vitdeploy.targets import Target

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
SPEED_COLUMNS = ("model", "engine", "format", "MB", "MiB in memory", "p50 ms", "speed", "measurement")
ACCURACY_COLUMNS = ("model", "engine", "precision", "calibration", "n", "drop", "agreement")
FASHION = Path(__file__).parent / "fashion_mnist"
INT8_LEVEL = 4
"""The accuracy_level of MatMulNBits at which ONNX Runtime rounds activations to int8."""

Row = tuple[str, ...]


@dataclass(frozen=True)
class Format:
    """A way to store the weights for an engine.

    Attributes:
        name: of the row.
        precision: that the graph is written in.
        group: how many inputs of a linear share a scale.
        level: an accuracy_level for MatMulNBits instead of the usual one.
        pairs: whether weights stay behind DequantizeLinear.
        computes_in: the precision that OpenVINO is compiled for, where it is another one.
    """

    name: str
    precision: str
    group: int = 64
    level: int | None = None
    pairs: bool = False
    computes_in: str | None = None

    @property
    def engine_precision(self) -> str:
        """The precision that the engine is asked for."""
        return self.computes_in or self.precision


FORMATS: dict[str, tuple[Format, ...]] = {
    "openvino": (
        Format("fp32", "fp32"),
        Format("bf16", "bf16"),
        Format("int8-weights", "int8-weights"),
        Format("int8-dynamic", "int8-dynamic"),
        Format("int4-weights, group 32", "int4-weights", group=32),
        Format("int4-weights, group 64", "int4-weights"),
        Format("int4-weights, group 128", "int4-weights", group=128),
        Format("not offered: int4, activations rounded to int8", "int4-weights", computes_in="int8-dynamic"),
    ),
    "onnxruntime": (
        Format("fp32", "fp32"),
        Format("int8-dynamic", "int8-dynamic"),
        Format("int8-weights", "int8-weights"),
        Format("int4-weights, group 32", "int4-weights", group=32),
        Format("int4-weights, group 64", "int4-weights"),
        Format("int4-weights, group 128", "int4-weights", group=128),
        Format("not offered: int8 as DequantizeLinear", "int8-weights", pairs=True),
        Format("not offered: int8, activations rounded to int8", "int8-weights", level=INT8_LEVEL),
        Format("not offered: int4, activations rounded to int8", "int4-weights", level=INT8_LEVEL),
    ),
}
EXAMINED = (
    ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8-weights"), ("openvino", "int8-dynamic"),
    ("openvino", "int4-weights"), ("onnxruntime", "int8-weights"), ("onnxruntime", "int4-weights"),
)  # fmt: skip
"""Engines and precisions whose accuracy is measured."""


def main() -> None:
    """Measure speed or accuracy, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "accuracy"))
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each model and engine (default: 40)")
    parser.add_argument("models", nargs="*", default=MODELS, help="timm's names, for `speed`")
    arguments = parser.parse_args()
    if arguments.what == "speed":
        for model in arguments.models:
            for engine in FORMATS:
                _store(SPEED_COLUMNS, _measure_speed(model, engine, arguments.seconds), key=2)
    else:
        for row in _measure_accuracy():
            print(*row, sep=" | ", flush=True)
            _store(ACCURACY_COLUMNS, [row], key=4)
    print(TABLE.read_text(encoding="utf-8"))


def _store(columns: Sequence[str], new: list[Row], *, key: int) -> None:
    """Put rows into their table, in place of those that begin with the same `key` cells."""
    replaced = {row[:key] for row in new}
    rows = [row for row in read_rows(TABLE, columns) if row[:key] not in replaced] + new
    speed = rows if columns == SPEED_COLUMNS else read_rows(TABLE, SPEED_COLUMNS)
    accuracy = rows if columns == ACCURACY_COLUMNS else read_rows(TABLE, ACCURACY_COLUMNS)
    TABLE.write_text(_page(sorted(speed, key=lambda row: row[:2]), accuracy), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- speed


def _measure_speed(model: str, engine: str, seconds: float) -> list[Row]:
    recipe = recipes.compose(f"timm:{model}", target=engine, weights="random")
    target, formats, threads = targets.find(recipe.target), FORMATS[engine], environment.available_cores()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        prepared = prepare(recipe, target.dialect(), work, Silent(), Options())
        files = [_write(form, prepared, target, work / f"format{index}.onnx") for index, form in enumerate(formats)]
        name = prepared.facts.examples.input_name
        image = make_input(prepared.facts.preprocess)
        del prepared  # its weights are memory that the timed processes could use
        pairs = list(zip(files, formats, strict=True))
        memory = [_measure_memory_mib(file, name, form.engine_precision) for file, form in pairs]
        sessions = [
            stack.enter_context(open_model(file, form.engine_precision, threads=threads, name=form.name))
            for file, form in pairs
        ]
        bench = measure(sessions, [{name: image}] * len(sessions), batch=1, seconds=seconds)
        sizes = [sum(part.stat().st_size for part in _parts(file)) / 1e6 for file in files]
    return [
        (
            model, engine, form.name, f"{size:.1f}", f"{used:.0f}", f"{run.p50_ms:.2f}",
            format_ratio(run.speedup, digits=2), format_doubts(bench),
        )
        for form, run, size, used in zip(formats, bench.runs, sizes, memory, strict=True)
    ]  # fmt: skip


def _write(form: Format, prepared: Prepared, target: Target, path: Path) -> Path:
    """Write the file that the engine opens."""
    dialect = target.dialect()
    precision = PrecisionSpec.model_validate({"kind": form.precision, "group": form.group})
    graph = quantize(prepared.graph, prepared.structure, precision, dialect, None, Silent()).graph
    passes.run(order.lowering(replace(dialect, int8_linears="qdq") if form.pairs else dialect), graph)
    if form.level is not None:
        for node in (n for n in graph.nodes if n.op_type == "MatMulNBits"):
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", form.level)
    graph.save(path)
    if target.name != "openvino":
        return path
    import openvino as ov

    ov.save_model(ov.Core().read_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
    return path.with_suffix(".xml")


def _parts(file: Path) -> list[Path]:
    """Return the file and that of its weights, if there is one."""
    weights = file.with_suffix(".bin") if file.suffix == ".xml" else file.with_name(f"{file.name}.data")
    return [part for part in (file, weights) if part.is_file()]


def _measure_memory_mib(file: Path, input_name: str, precision: str) -> float:
    command = [sys.executable, "-m", opened_memory.__name__, str(file), input_name, precision]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024


# ---------------------------------------------------------------------------------------------------- accuracy


def _measure_accuracy() -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        fashion.save_sets(work)
        for title, factory in (("benign", "model.py:build"), ("INT8-hostile", "hostile.py:int8_hostile")):
            weights = str(FASHION / "vit.safetensors") if title == "benign" else None
            for engine, precision in EXAMINED:
                for calibrated in (True, False) if precision.endswith("-weights") else (False,):
                    recipe = recipes.compose(
                        f"python:{FASHION / factory}", target=engine, precision=precision, weights=weights,
                        calibration=str(work / "calibration.npz") if calibrated else None,
                    )  # fmt: skip
                    artifact = export(recipe, work / "artifact", Silent(), force=True).artifact
                    evaluation = evaluate(artifact, str(work / "test.npz"), Silent())
                    images = f"{fashion.CALIBRATION_COUNT} images" if calibrated else "none"
                    yield (
                        title, engine, precision, images, f"{evaluation.n:,}", drop(evaluation.metrics["top1"]),
                        f"{100 * evaluation.agreement:.2f}",
                    )  # fmt: skip


def _page(speed: list[Row], accuracy: list[Row]) -> str:
    return "\n".join(
        [
            "# Weight-only INT8 and INT4, and BF16",
            "",
            describe_machine("torch", "timm", "onnxruntime", "openvino"),
            "",
            "## Bytes, memory, time",
            "",
            "`MB`: the files that the engine opens. `MiB in memory`: anonymous memory of a process that opened the",
            "model and ran it. `p50 ms`: median latency at batch 1. `speed`: relative to the same engine's float32,",
            "with its 95 % bootstrap interval over interleaved blocks; above 1 is faster. Random weights. Made by",
            "`python -m benchmarks.weight_only speed`.",
            "",
            *format_table(SPEED_COLUMNS, speed),
            "",
            "## Accuracy",
            "",
            "The Fashion-MNIST ViT and its INT8-hostile twin (benchmarks/fashion_mnist), each against itself in",
            "float32 PyTorch on the same images. `drop`: of top-1 in points, with its paired 95 % interval; above 0 is",
            "worse. `agreement`: images with the same class as in float32, in percent. Made by",
            "`python -m benchmarks.weight_only accuracy`.",
            "",
            *format_table(ACCURACY_COLUMNS, accuracy),
            "",
        ]
    )


if __name__ == "__main__":
    main()
