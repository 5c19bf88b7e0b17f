"""Compare the forms in which attention can be written, in float32, on each engine that takes them.

    python -m benchmarks.attention_forms [--seconds S] [MODEL…]

One graph is lowered in every way. The forms of one engine are timed in turns in one process. The first form is the one
that `Dialect` names for the engine, and the others are given relative to it. Writes benchmarks/attention_forms.md.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.images import make_input
from benchmarks.tables import describe_machine, format_doubts, format_ratio, read_valid_rows, write_page
from vitdeploy import environment, passes, targets
from vitdeploy import recipe as recipes
from vitdeploy.evidence import Bench
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.passes import order
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.unpack_qkv import UnpackQkv
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.progress import Silent
from vitdeploy.session import Session
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("model", "engine", "form", "p50 ms", "relative speed", "measurement")


@dataclass(frozen=True)
class Form:
    """A way to write attention for an engine. Without a dialect, `Attention` stays as it is."""

    name: str
    engine: str
    dialect: Dialect | None
    packed_qkv: bool


FORMS = (
    Form("MultiHeadAttention, three linears", "onnxruntime", Dialect(20, "multihead"), packed_qkv=False),
    Form("MultiHeadAttention, packed linear", "onnxruntime", Dialect(20, "multihead"), packed_qkv=True),
    Form("Attention (opset 23), packed linear", "onnxruntime", None, packed_qkv=True),
    Form("primitives, packed linear", "onnxruntime", Dialect(20, "primitives"), packed_qkv=True),
    Form("primitives, packed linear", "openvino", Dialect(20, "primitives"), packed_qkv=True),
    Form("primitives, three linears", "openvino", Dialect(20, "primitives"), packed_qkv=False),
    Form("Attention (opset 23), packed linear", "openvino", None, packed_qkv=True),
)


def main() -> None:
    """Measure every model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each model and engine (default: 20)")
    parser.add_argument("--fresh", action="store_true", help="measure rows again that are in the table")
    parser.add_argument("models", nargs="*", default=MODELS, help="timm's names (default: those of the table)")
    arguments = parser.parse_args()
    rows = [] if arguments.fresh else read_valid_rows(TABLE, COLUMNS)
    for model in arguments.models:
        for engine in ("onnxruntime", "openvino"):
            if any(row[:2] == (model, engine) for row in rows):
                continue
            forms = [form for form in FORMS if form.engine == engine]
            rows += _rows(model, forms, _measure(model, forms, arguments.seconds))
            write_page(TABLE, _heading(), COLUMNS, rows)
    print(TABLE.read_text(encoding="utf-8"))


def _measure(model: str, forms: list[Form], seconds: float) -> Bench:
    recipe = recipes.compose(f"timm:{model}", target="openvino", weights="random")  # this target keeps q, k, v packed
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        prepared = prepare(recipe, targets.find(recipe.target).dialect(), work, Silent(), Options())
        sessions = [stack.enter_context(_open(form, prepared, work / f"{i}.onnx")) for i, form in enumerate(forms)]
        feeds = {prepared.facts.examples.input_name: make_input(prepared.facts.preprocess)}
        return measure(sessions, [feeds] * len(sessions), batch=1, seconds=seconds)


def _open(form: Form, prepared: Prepared, path: Path) -> Session:
    """Write a copy of the graph in this form, and open it."""
    graph = Graph(prepared.graph.model.clone())
    if not form.packed_qkv:
        passes.run([UnpackQkv(), RemoveDead()], graph)
    if form.dialect is not None:
        passes.run(order.lowering(form.dialect), graph)
    graph.save(path)
    threads = environment.available_cores()
    if form.engine == "openvino":
        return OpenVINOSession(path, Engine("CPU", threads), name=form.name)
    return OnnxSession(path, threads=threads, name=form.name)


def _rows(model: str, forms: list[Form], bench: Bench) -> list[tuple[str, ...]]:
    doubts = format_doubts(bench)
    return [
        (model, form.engine, form.name, f"{run.p50_ms:.2f}", format_ratio(run.speedup), doubts)
        for form, run in zip(forms, bench.runs, strict=True)
    ]


def _heading() -> list[str]:
    return [
        "# Forms of attention, in float32",
        "",
        "Median latency at batch 1, and the speed relative to the form that vitdeploy writes (the first one of each",
        "engine), with its 95 % bootstrap interval over interleaved blocks. Above 1 is faster. Made by",
        "`python -m benchmarks.attention_forms`.",
        "",
        describe_machine("torch", "timm", "onnxruntime", "openvino"),
    ]


if __name__ == "__main__":
    main()
