"""Compare vitdeploy's INT8 artifacts with the fastest float32 and the stock INT8 of this machine.

    python -m benchmarks.int8_speed [--seconds S] [MODEL…]

Every way runs in turns in one process: PyTorch, torch.compile, ONNX Runtime and OpenVINO in float32 on the plain
export, ONNX Runtime's own `quantize_dynamic` on it, and vitdeploy's artifacts in every precision that saves time, with
the one that `--precision auto` chose. Writes benchmarks/int8_speed.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.fp32_speed import STOCK, open_stock
from benchmarks.images import make_input, save_made_up
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment, sources
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.evidence import Bench, Run
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.recipe import ModelSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.session import Array

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "way", "p50 ms", "× fastest stock float32", "× ORT quantize_dynamic", "measurement")
WAYS = (
    ("onnxruntime", "auto"),
    ("onnxruntime", "int8"),
    ("onnxruntime", "int8-dynamic"),
    ("onnxruntime", "fp32"),
    ("openvino", "int8"),
    ("openvino", "fp32"),
)
"""Target and precision of each artifact."""
STOCK_INT8 = "ORT quantize_dynamic"
CALIBRATION_IMAGES = 32  # their content does not matter here: it changes scales, not time


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="time for each model (default: 40)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    parser.add_argument("models", nargs="*", default=MODELS, help="timm's names (default: those of the table)")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    for name in arguments.models:
        if any(row[0] == name for row in rows):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            bench, chosen = _measure(name, arguments.seconds)
        rows += _rows(name, bench, chosen)
        write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _measure(name: str, seconds: float) -> tuple[Bench, str]:
    """Return the measurement, and the precision that `auto` chose."""
    threads = environment.available_cores()
    model = sources.load(ModelSpec(spec=f"timm:{name}", weights="random"))
    image = make_input(model.preprocess)
    chosen = ""
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        sessions = open_stock(name, model, image, folder, threads)
        sessions.append(_open_stock_int8(model, image, folder, threads))
        calibration = save_made_up(folder / "images.npz", model.preprocess, CALIBRATION_IMAGES)
        for target, precision in WAYS:
            recipe = recipes.compose(
                f"timm:{name}", target=target, precision=precision, weights="random", calibration=calibration
            )
            result = export(recipe, folder / f"{target}-{precision}", Silent())
            session = open_session(result.artifact, threads)
            session.name = f"vitdeploy {target} {precision}"
            sessions.append(session)
            chosen = result.summary.precision if precision == "auto" else chosen
        for session in sessions:
            stack.enter_context(session)
        return measure(sessions, [{"input": image}] * len(sessions), batch=1, seconds=seconds), chosen


def _open_stock_int8(model: sources.LoadedModel, image: Array, folder: Path, threads: int) -> OnnxSession:
    """Quantize the legacy exporter's graph: of one with `Attention` nodes, `quantize_dynamic` makes an invalid one."""
    assert model.module is not None
    legacy, quantized = folder / "legacy.onnx", folder / "stock.onnx"
    torch.onnx.export(
        model.module, (torch.from_numpy(image),), legacy, dynamo=False, opset_version=17, input_names=["input"]
    )
    quantize_dynamic(legacy, quantized, weight_type=QuantType.QInt8)
    return OnnxSession(quantized, threads=threads, name=STOCK_INT8)


def _rows(name: str, bench: Bench, chosen: str) -> list[tuple[str, ...]]:
    runs = {run.name: run for run in bench.runs}
    fastest = min((runs[stock] for stock in STOCK), key=lambda run: run.p50_ms)
    rows: list[tuple[str, ...]] = []
    for run in bench.runs:
        title = f"{run.name} (chose {chosen})" if run.name.endswith("auto") else run.name
        ratios = (_ratio(fastest, run), _ratio(runs[STOCK_INT8], run))
        rows.append((name, title, f"{run.p50_ms:.2f}", *ratios, format_doubts(bench)))
    return rows


def _ratio(reference: Run, run: Run) -> str:
    return format_ratio(None if run is reference else ratio_interval(reference.blocks, run.blocks), digits=2)


def _heading() -> list[str]:
    return [
        "# vitdeploy's INT8 artifacts against the fastest float32",
        "",
        "Median latency at batch 1, all ways timed in turns in one process; and how many times as fast each way is as",
        "the fastest stock float32 way and as ONNX Runtime's own `quantize_dynamic`, with 95 % bootstrap intervals",
        "over blocks. Random weights. OpenVINO computes in f32 what is not INT8. Made by",
        "`python -m benchmarks.int8_speed`.",
        "",
        describe_machine("torch", "timm", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
