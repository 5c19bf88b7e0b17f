"""What weight-only formats and BF16 save and cost: bytes, memory, time and accuracy.

    python -m benchmarks.weight_only speed [MODEL…] [--seconds S]
    python -m benchmarks.weight_only accuracy              needs the Debian package dataset-fashion-mnist

`speed`: the formats of one engine, interleaved in one process, against the same engine's float32, with random weights.
`accuracy`: the Fashion-MNIST ViT and its INT8-hostile twin on all 10,000 test images, paired with float32 PyTorch.
Both write benchmarks/weight_only.md; what the other one found stays in it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.fashion_mnist import data as fashion
from vitdeploy import environment, passes, targets
from vitdeploy import recipe as recipes
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.export import export
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import natural_image
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.passes import order
from vitdeploy.pipeline.prepare import Prepared, prepare
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Session
from vitdeploy.targets import Target
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
FOUND = Path("build/weight_only.json")
FASHION = Path(__file__).parent / "fashion_mnist"
INT8_LEVEL = 4
"""MatMulNBits' accuracy_level at which ONNX Runtime rounds activations to int8."""


@dataclass(frozen=True)
class Way:
    """A precision of an engine. `level` replaces that of MatMulNBits; `pairs` leaves weights as DequantizeLinear."""

    name: str
    kind: str
    group: int = 64
    level: int | None = None
    pairs: bool = False
    runs: str | None = None
    """The precision that OpenVINO is compiled for, where it is another."""


WAYS: dict[str, tuple[Way, ...]] = {
    "openvino": (
        Way("fp32", "fp32"),
        Way("bf16", "bf16"),
        Way("int8-weights", "int8-weights"),
        Way("int8-dynamic", "int8-dynamic"),
        Way("int4-weights, group 32", "int4-weights", group=32),
        Way("int4-weights, group 64", "int4-weights"),
        Way("int4-weights, group 128", "int4-weights", group=128),
        Way("not offered: int4, activations rounded to int8", "int4-weights", runs="int8-dynamic"),
    ),
    "onnxruntime": (
        Way("fp32", "fp32"),
        Way("int8-dynamic", "int8-dynamic"),
        Way("int8-weights", "int8-weights"),
        Way("int4-weights, group 32", "int4-weights", group=32),
        Way("int4-weights, group 64", "int4-weights"),
        Way("int4-weights, group 128", "int4-weights", group=128),
        Way("not offered: int8 as DequantizeLinear", "int8-weights", pairs=True),
        Way("not offered: int8, activations rounded to int8", "int8-weights", level=INT8_LEVEL),
        Way("not offered: int4, activations rounded to int8", "int4-weights", level=INT8_LEVEL),
    ),
}
EXAMINED = (
    ("openvino", "fp32"), ("openvino", "bf16"), ("openvino", "int8-weights"), ("openvino", "int8-dynamic"),
    ("openvino", "int4-weights"), ("onnxruntime", "int8-weights"), ("onnxruntime", "int4-weights"),
)  # fmt: skip
MEMORY = """
import sys
from pathlib import Path
import numpy as np
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession
path, name, precision = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
openvino = path.suffix == ".xml"
session = OpenVINOSession(path, Engine(precision=precision)) if openvino else OnnxSession(path)
for _ in range(3):
    session.run({name: np.zeros((1, 3, 224, 224), np.float32)})
status = Path("/proc/self/status").read_text()
print(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")))
"""
"""Anonymous memory only: mapped files belong to the page cache."""


def main() -> None:
    """Measure what was asked for, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "accuracy"))
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each model and engine (default: 40)")
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        for model in arguments.models:
            for engine in WAYS:
                _keep(f"speed {model} {engine}", _speed(model, engine, arguments.seconds))
    else:
        for key, rows in _accuracy():
            _keep(key, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _keep(key: str, rows: list[str]) -> None:
    found = json.loads(FOUND.read_text(encoding="utf-8")) if FOUND.is_file() else {}
    found[key] = rows
    FOUND.parent.mkdir(exist_ok=True)
    FOUND.write_text(json.dumps(found, indent=1), encoding="utf-8")
    TABLE.write_text(_table(found), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- speed


def _speed(model: str, engine: str, seconds: float) -> list[str]:
    recipe = recipes.compose(f"timm:{model}", target=engine, weights="random")
    target = targets.find(recipe.target)
    ways = WAYS[engine]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        prepared = prepare(recipe, target, work, Silent(), calibrated=False)
        files = [_written(way, prepared, target, work / f"way{index}.onnx") for index, way in enumerate(ways)]
        name = prepared.facts.examples.input_name
        image = normalize(natural_image(0, prepared.facts.preprocess, 1), prepared.facts.preprocess)
        del prepared
        memory = [_memory_mib(file, name, way) for file, way in zip(files, ways, strict=True)]
        sessions = [stack.enter_context(_opened(file, way)) for file, way in zip(files, ways, strict=True)]
        found = measure(sessions, [{name: image}] * len(sessions), batch=1, seconds=seconds)
        sizes = [sum(f.stat().st_size for f in _all_of(file)) / 1e6 for file in files]
    doubt = "; ".join(found.doubts)[:120] or "valid"
    rows = []
    for way, run, size, used in zip(ways, found.runs, sizes, memory, strict=True):
        ratio = run.speedup
        against = "1" if ratio is None else f"{ratio.ratio:.2f} [{ratio.ci95[0]:.2f}, {ratio.ci95[1]:.2f}]"
        figures = f"{size:.1f} | {used:.0f} | {run.p50_ms:.2f} | {against}"
        rows.append(f"| {model} | {engine} | {way.name} | {figures} | {doubt} |")
    return rows


def _written(way: Way, prepared: Prepared, target: Target, path: Path) -> Path:
    """The file that the engine opens."""
    dialect = target.dialect()
    precision = PrecisionSpec.model_validate({"kind": way.kind, "group": way.group})
    graph = Graph(prepared.graph.model.clone())
    quantized = quantize(graph, prepared.structure, precision, dialect, None, Silent()).graph
    passes.run(order.lowering(replace(dialect, int8_linears="qdq") if way.pairs else dialect), quantized)
    if way.level is not None:
        for node in (n for n in quantized.nodes if n.op_type == "MatMulNBits"):
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", way.level)
    quantized.save(path)
    if target.name != "openvino":
        return path
    import openvino as ov

    ov.save_model(ov.Core().read_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
    return path.with_suffix(".xml")


def _opened(file: Path, way: Way) -> Session:
    threads = environment.available_cores()
    if file.suffix == ".xml":
        return OpenVINOSession(file, Engine("CPU", threads, precision=way.runs or way.kind), name=way.name)
    return OnnxSession(file, threads=threads, name=way.name)


def _all_of(file: Path) -> list[Path]:
    beside = file.with_suffix(".bin") if file.suffix == ".xml" else file.with_name(f"{file.name}.data")
    return [f for f in (file, beside) if f.is_file()]


def _memory_mib(file: Path, name: str, way: Way) -> float:
    words = [sys.executable, "-c", MEMORY, file, name, way.runs or way.kind]
    found = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=True)
    return int(found.stdout) / 1024


# ---------------------------------------------------------------------------------------------------- accuracy


def _accuracy() -> list[tuple[str, list[str]]]:
    found = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        train, test = fashion.read_split("train"), fashion.read_split("test")
        chosen = fashion.calibration_subset(train)
        np.savez(work / "calibration.npz", images=chosen.images, labels=chosen.labels)
        np.savez(work / "test.npz", images=test.images, labels=test.labels)
        for title, factory in (("benign", "model.py:build"), ("INT8-hostile", "hostile.py:int8_hostile")):
            weights = FASHION / "vit.safetensors" if title == "benign" else None
            for engine, kind in EXAMINED:
                for images in (True, False) if kind.endswith("-weights") else (False,):
                    key = f"accuracy {title} {engine} {kind} {'with' if images else 'without'} images"
                    found.append((key, [_examined(work, title, factory, weights, engine, kind, images=images)]))
                    print(found[-1][1][0], flush=True)
    return found


def _examined(
    work: Path, title: str, factory: str, weights: Path | None, engine: str, kind: str, *, images: bool
) -> str:
    recipe = recipes.compose(
        f"python:{FASHION / factory}", target=engine, precision=kind,
        weights=str(weights) if weights else None, calibration=str(work / "calibration.npz") if images else None,
    )  # fmt: skip
    out = work / "artifact"
    export(recipe, out, Silent(), force=True)
    found = evaluate(out, str(work / "test.npz"), Silent())
    top1 = found.metrics["top1"]
    interval = f"{top1.drop:.2f} [{top1.ci95[0]:.2f}, {top1.ci95[1]:.2f}]"
    with_images = "256 images" if images else "none"
    return f"| {title} | {engine} | {kind} | {with_images} | {found.n:,} | {interval} | {100 * found.agreement:.2f} |"


def _table(found: dict[str, list[str]]) -> str:
    host, versions = environment.host(), environment.library_versions()
    speed = [row for key, rows in sorted(found.items()) if key.startswith("speed") for row in rows]
    accuracy = [row for key, rows in found.items() if key.startswith("accuracy") for row in rows]
    return "\n".join(
        [
            "# Weight-only INT8 and INT4, and BF16",
            "",
            f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}; "
            + ", ".join(f"{k} {versions[k]}" for k in ("torch", "timm", "onnxruntime", "openvino")),
            "",
            "## Bytes, memory, time",
            "",
            "What the engine opens, in MB; anonymous memory of a process that opened it and ran it, in MiB; median",
            "latency at batch 1 in ms; speed against the same engine's float32, with its 95 % bootstrap interval over",
            "interleaved blocks: above 1 is faster. Random weights. `python -m benchmarks.weight_only speed`",
            "",
            "| model | engine | format | MB | MiB in memory | p50 ms | speed | measurement |",
            "|---|---|---|---|---|---|---|---|",
            *speed,
            "",
            "## Accuracy",
            "",
            "The Fashion-MNIST ViT and its INT8-hostile twin (benchmarks/fashion_mnist), each against itself in",
            "float32 PyTorch on the same images: drop of top-1 in points with its paired 95 % interval, and agreement",
            "in percent. `python -m benchmarks.weight_only accuracy`",
            "",
            "| model | engine | precision | calibration | n | drop | agreement |",
            "|---|---|---|---|---|---|---|",
            *accuracy,
            "",
        ]
    )


if __name__ == "__main__":
    main()
