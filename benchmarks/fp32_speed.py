"""Compare vitdeploy's float32 artifacts with stock engines on a plain export.

    python -m benchmarks.fp32_speed [--seconds S]

Each model runs in six ways, in turns in one process: PyTorch eager, torch.compile, ONNX Runtime and OpenVINO on the
plain export of the dynamo exporter, and both engines on vitdeploy's artifact. Writes benchmarks/fp32_speed.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import timm
import torch

from benchmarks.images import make_input
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment, onnx_export, sources
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.evidence import Bench
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.recipe import Batch, ModelSpec
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.session import Array, Session
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

MODELS = (
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "levit_128s",
    "vit_base_patch16_224",
)
TABLE = Path(__file__).with_suffix(".md")
STOCK = ("torch eager", "torch.compile", "onnxruntime", "openvino")
OURS = ("vitdeploy onnxruntime", "vitdeploy openvino")
COLUMNS = ("model", *STOCK, *OURS, "best of vitdeploy against best stock", "measurement")


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="time for each model (default: 30)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    for name in MODELS:
        if any(row[0] == name for row in rows):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(_row(name, _measure(name, arguments.seconds)))
        print(*rows[-1], sep=" | ", flush=True)
        write_page(TABLE, _heading(), COLUMNS, rows)


def _measure(name: str, seconds: float) -> Bench:
    threads = environment.available_cores()
    model = sources.load(ModelSpec(spec=f"timm:{name}", weights="random"))
    image = make_input(model.preprocess)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sessions = open_stock(name, model, image, Path(folder), threads)
        for target, title in zip(("onnxruntime", "openvino"), OURS, strict=True):
            recipe = recipes.compose(f"timm:{name}", target=target, weights="random")
            session = open_session(export(recipe, Path(folder) / target, Silent()).artifact, threads)
            session.name = title
            sessions.append(session)
        for session in sessions:
            stack.enter_context(session)
        return measure(sessions, [{"input": image}] * len(sessions), batch=1, seconds=seconds)


def open_stock(name: str, model: sources.LoadedModel, image: Array, folder: Path, threads: int) -> list[Session]:
    """Open the timm model `name` in float32 in every way of `STOCK`; the plain export goes to `folder`/plain.onnx."""
    assert model.module is not None
    plain = folder / "plain.onnx"
    example = onnx_export.Example(image, TorchSession(model.module).run({"input": image}))
    onnx_export.export(model.module, [example], input_name="input", batch=Batch(), path=plain)
    compiled: Any = torch.compile(timm.create_model(name, pretrained=False).eval())
    eager, in_compiled, in_onnxruntime, in_openvino = STOCK
    return [
        TorchSession(model.module, threads=threads, name=eager),
        TorchSession(compiled, threads=threads, name=in_compiled),
        OnnxSession(plain, threads=threads, name=in_onnxruntime),
        OpenVINOSession(plain, Engine("CPU", threads), name=in_openvino),
    ]


def _row(name: str, bench: Bench) -> tuple[str, ...]:
    runs = {run.name: run for run in bench.runs}
    stock, ours = (min((runs[name] for name in names), key=lambda run: run.p50_ms) for names in (STOCK, OURS))
    ratio = format_ratio(ratio_interval(stock.blocks, ours.blocks))
    times = (f"{run.p50_ms:.2f}" for run in bench.runs)
    return name, *times, f"{ours.name} against {stock.name}: {ratio}", format_doubts(bench)


def _heading() -> list[str]:
    return [
        "# vitdeploy's float32 artifacts against stock engines",
        "",
        "Median latency in ms at batch 1, all ways timed in turns in one process; and how many times as fast the",
        "faster vitdeploy artifact is as the fastest stock way, with its 95 % bootstrap interval over blocks. OpenVINO",
        "computes in f32 throughout. Made by `python -m benchmarks.fp32_speed`.",
        "",
        describe_machine("torch", "timm", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
