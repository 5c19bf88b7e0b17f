"""How fast are vitdeploy's INT8 artifacts against the fastest float32 and the fastest stock INT8 of this machine?

    python -m benchmarks.int8_speed [--seconds S] [MODEL…]

Every way runs interleaved in one process: PyTorch, torch.compile, ONNX Runtime and OpenVINO in float32 on the plain
export, ONNX Runtime's own `quantize_dynamic` on it, and vitdeploy's artifacts in every precision that saves time,
with the one that `--precision auto` chose. Writes benchmarks/int8_speed.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.fp32_speed import stock_sessions
from vitdeploy import environment, sources
from vitdeploy import recipe as recipes
from vitdeploy.artifact import load
from vitdeploy.commands.export import export
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Bench, Run
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.recipe import Preprocess
from vitdeploy.runtime.artifact_session import open_session

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
WAYS = (
    ("onnxruntime", "auto"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "int8-dynamic"),
    ("onnxruntime", "fp32"),
    ("openvino", "int8"),
    ("openvino", "fp32"),
)
FLOAT = ("torch eager", "torch.compile", "onnxruntime", "openvino")
STOCK_INT8 = "ORT quantize_dynamic"
CALIBRATION_IMAGES = 32  # their content is no matter here: it moves scales, not time


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each model (default: 40)")
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    rows: list[str] = []
    for name in arguments.models:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, chosen = _measured(name, arguments.seconds)
        rows += _rows(name, found, chosen)
        TABLE.write_text(_table(rows), encoding="utf-8")
    print(_table(rows))


def _measured(name: str, seconds: float) -> tuple[Bench, str]:
    """The measurement, and which precision `auto` chose."""
    threads = environment.available_cores()
    model = sources.load(recipes.compose(f"timm:{name}", target="onnxruntime", weights="random").model)
    image = normalize(natural_image(0, model.preprocess, 1), model.preprocess)
    chosen = ""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        sessions = stock_sessions(name, model, image, folder, threads)
        # Of the legacy exporter's graph: `quantize_dynamic` writes an invalid one of `Attention` nodes.
        torch.onnx.export(
            model.module, (torch.from_numpy(image),), folder / "legacy.onnx", dynamo=False, opset_version=17,
            input_names=["input"],
        )  # fmt: skip
        quantize_dynamic(folder / "legacy.onnx", folder / "stock.onnx", weight_type=QuantType.QInt8)
        sessions.append(OnnxSession(folder / "stock.onnx", threads=threads, name=STOCK_INT8))
        calibration = _images(folder / "images.npz", model.preprocess)
        for target, precision in WAYS:
            out = folder / f"{target}-{precision}"
            recipe = recipes.compose(
                f"timm:{name}", target=target, precision=precision, weights="random", calibration=calibration
            )
            found = export(recipe, out, Silent())
            session = open_session(load(out), threads)
            session.name = f"vitdeploy {target} {precision}"
            sessions.append(session)
            chosen = found.precision if precision == "auto" else chosen
        for session in sessions:
            stack.enter_context(session)
        return measure(sessions, [{"input": image}] * len(sessions), batch=1, seconds=seconds), chosen


def _images(path: Path, preprocess: Preprocess) -> str:
    images = natural_image(0, preprocess, CALIBRATION_IMAGES)
    np.savez(path, images=images.transpose(0, 2, 3, 1))
    return str(path)


def _rows(name: str, found: Bench, chosen: str) -> list[str]:
    runs: dict[str, Run] = {run.name: run for run in found.runs}
    fastest = min((runs[n] for n in FLOAT), key=lambda run: run.p50_ms)
    doubt = "; ".join(found.doubts)[:120] or "valid"
    rows = []
    for run in found.runs:
        told = f"{run.name} (chose {chosen})" if run.name.endswith("auto") else run.name
        against = [_ratio(fastest, run), _ratio(runs[STOCK_INT8], run)]
        rows.append(f"| {name} | {told} | {run.p50_ms:.2f} | {' | '.join(against)} | {doubt} |")
    return rows


def _ratio(before: Run, run: Run) -> str:
    if before is run:
        return "1"
    found = ratio_interval(before.blocks, run.blocks)
    return f"{found.ratio:.2f} [{found.ci95[0]:.2f}, {found.ci95[1]:.2f}]"


def _table(rows: list[str]) -> str:
    host, versions = environment.host(), environment.library_versions()
    libraries = ", ".join(f"{k} {versions[k]}" for k in ("torch", "timm", "onnxruntime", "openvino"))
    return "\n".join(
        [
            "# INT8 against the fastest float32",
            "",
            "Median latency in ms at batch 1, all interleaved in one process; the speed over the fastest stock float32",
            "way and over ONNX Runtime's own `quantize_dynamic`, with 95 % bootstrap intervals over blocks. Random",
            "weights. Made by `python -m benchmarks.int8_speed`.",
            "",
            f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}; {libraries}; OpenVINO at f32 but for INT8.",
            "",
            "| model | way | p50 ms | × fastest stock float32 | × ORT quantize_dynamic | measurement |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
