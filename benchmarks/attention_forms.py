"""Which form of attention runs fastest, in float32? One graph, lowered in every way that an engine takes.

    python benchmarks/attention_forms.py [--seconds S]

The forms of one engine are measured interleaved in one process; what `Dialect` says comes first, and the others are
given relative to it. Writes benchmarks/attention_forms.md.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vitdeploy import environment, passes, targets
from vitdeploy import recipe as recipes
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Bench
from vitdeploy.graph.dialect import Dialect
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.passes import order
from vitdeploy.passes.remove_dead import RemoveDead
from vitdeploy.passes.unpack_qkv import UnpackQkv
from vitdeploy.pipeline.prepare import Prepared, prepare
from vitdeploy.progress import Silent
from vitdeploy.session import Session
from vitdeploy.targets._openvino_session import Engine, OpenVINOSession

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")
TABLE = Path(__file__).with_suffix(".md")


@dataclass(frozen=True)
class Form:
    """A way to write attention: `dialect` None leaves `Attention` as it is."""

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
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    rows: list[str] = []
    for model in arguments.models:
        for engine in ("onnxruntime", "openvino"):
            forms = [form for form in FORMS if form.engine == engine]
            rows += _rows(model, forms, _measured(model, forms, arguments.seconds))
            TABLE.write_text(_table(rows), encoding="utf-8")
    print(_table(rows))


def _measured(model: str, forms: list[Form], seconds: float) -> Bench:
    recipe = recipes.compose(f"timm:{model}", target="openvino", weights="random")  # which keeps qkv packed
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        prepared = prepare(recipe, targets.find(recipe.target), work, Silent(), calibrated=False)
        sessions = [stack.enter_context(_session(form, prepared, work / f"{i}.onnx")) for i, form in enumerate(forms)]
        image = normalize(natural_image(0, prepared.facts.preprocess, 1), prepared.facts.preprocess)
        return measure(
            sessions, [{prepared.facts.examples.input_name: image}] * len(sessions), batch=1, seconds=seconds
        )


def _session(form: Form, prepared: Prepared, path: Path) -> Session:
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


def _rows(model: str, forms: list[Form], found: Bench) -> list[str]:
    doubt = "; ".join(found.doubts)[:120] or "valid"
    rows = []
    for form, run in zip(forms, found.runs, strict=True):
        ratio = run.speedup
        against = "1" if ratio is None else f"{ratio.ratio:.3f} [{ratio.ci95[0]:.3f}, {ratio.ci95[1]:.3f}]"
        rows.append(f"| {model} | {form.engine} | {form.name} | {run.p50_ms:.2f} | {against} | {doubt} |")
    return rows


def _table(rows: list[str]) -> str:
    host = environment.host()
    versions = environment.library_versions()
    return "\n".join(
        [
            "# Forms of attention, in float32",
            "",
            "Median latency in ms at batch 1, and the speed relative to the form that vitdeploy writes (the first of",
            "each engine), with its 95 % bootstrap interval over interleaved blocks: above 1 is faster. Made by",
            "`python benchmarks/attention_forms.py`.",
            "",
            f"{host.cpu}, {host.cores} threads, {' '.join(host.isa)}; "
            + ", ".join(f"{k} {versions[k]}" for k in ("torch", "timm", "onnxruntime", "openvino")),
            "",
            "| model | engine | form | p50 ms | relative speed | measurement |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
