"""Is the raised and folded graph at least as fast as the stock engines are on the plain export? In float32.

    python benchmarks/fp32_speed.py [--seconds S]

Each model runs in six ways, interleaved in one process: PyTorch eager, torch.compile, ONNX Runtime and OpenVINO on the
plain export of the dynamo exporter, ONNX Runtime and OpenVINO on vitdeploy's artifact. Writes benchmarks/fp32_speed.md.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path

import timm
import torch

from vitdeploy import environment, sources
from vitdeploy import onnx_export as exporting
from vitdeploy import recipe as recipes
from vitdeploy.artifact import load
from vitdeploy.commands.export import export
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Bench
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.measure.statistics import ratio_interval
from vitdeploy.progress import Silent
from vitdeploy.recipe import Batch
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
OURS = ("vitdeploy onnxruntime", "vitdeploy openvino")


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="time for each model (default: 30)")
    seconds = parser.parse_args().seconds
    rows = []
    for name in MODELS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _measure(name, seconds)
        rows.append(_row(name, found))
        print(rows[-1], flush=True)
        TABLE.write_text(_table(rows), encoding="utf-8")


def _measure(name: str, seconds: float) -> Bench:
    threads = environment.available_cores()
    spec = recipes.compose(f"timm:{name}", target="onnxruntime", weights="random").model
    model = sources.load(spec)
    image = normalize(natural_image(0, model.preprocess, 1), model.preprocess)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sessions = stock_sessions(name, model, image, Path(folder), threads)
        for target in ("onnxruntime", "openvino"):
            out = Path(folder) / target
            export(recipes.compose(f"timm:{name}", target=target, weights="random"), out, Silent())
            session = open_session(load(out), threads)
            session.name = f"vitdeploy {target}"
            sessions.append(session)
        for session in sessions:
            stack.enter_context(session)
        return measure(sessions, [{"input": image}] * len(sessions), batch=1, seconds=seconds)


def stock_sessions(name: str, model: sources.LoadedModel, image: Array, folder: Path, threads: int) -> list[Session]:
    """What runs the timm model `name` without vitdeploy, in float32; the plain export is `folder`/plain.onnx."""
    assert model.module is not None
    plain = folder / "plain.onnx"
    example = (image, TorchSession(model.module).run({"input": image}))
    exporting.export(model.module, [example], input_name="input", batch=Batch(), path=plain)
    compiled = torch.compile(timm.create_model(name, pretrained=False).eval())
    return [
        TorchSession(model.module, threads=threads, name="torch eager"),
        TorchSession(compiled, threads=threads, name="torch.compile"),
        OnnxSession(plain, threads=threads, name="onnxruntime"),
        OpenVINOSession(plain, Engine("CPU", threads), name="openvino"),
    ]


def _row(name: str, found: Bench) -> str:
    runs = {run.name: run for run in found.runs}
    stock = min((run for run in found.runs if run.name not in OURS), key=lambda run: run.p50_ms)
    ours = min((runs[name] for name in OURS), key=lambda run: run.p50_ms)
    ratio = ratio_interval(stock.blocks, ours.blocks)
    figures = " | ".join(f"{run.p50_ms:.2f}" for run in found.runs)
    against = f"{ratio.ratio:.3f} [{ratio.ci95[0]:.3f}, {ratio.ci95[1]:.3f}]"
    doubt = "; ".join(found.doubts)[:120] or "valid"
    return f"| {name} | {figures} | {ours.name} against {stock.name}: {against} | {doubt} |"


def _table(rows: list[str]) -> str:
    host = environment.host()
    versions = environment.library_versions()
    libraries = ", ".join(f"{k} {versions[k]}" for k in ("torch", "timm", "onnxruntime", "openvino"))
    columns = "torch eager | torch.compile | onnxruntime | openvino | vitdeploy onnxruntime | vitdeploy openvino"
    return "\n".join(
        [
            "# Raised and folded, in float32",
            "",
            "Median latency in ms at batch 1, all interleaved in one process, and the speed of the faster vitdeploy",
            "artifact over the fastest stock way, with its 95 % bootstrap interval over blocks. Made by",
            "`python benchmarks/fp32_speed.py`.",
            "",
            f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}; {libraries}; OpenVINO at f32 throughout.",
            "",
            f"| model | {columns} | best of vitdeploy against best stock | measurement |",
            "|---|---|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
