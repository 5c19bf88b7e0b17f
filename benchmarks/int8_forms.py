"""Show where the time of an INT8 ViT goes on ONNX Runtime, and compare other ways to write the same model.

    python -m benchmarks.int8_forms [--seconds S] [MODEL…]

First comes ONNX Runtime's own profile of vitdeploy's graphs, by operator. Then come other ways to write the same INT8
model, all timed in turns in one process with the one that vitdeploy writes. Writes benchmarks/int8_forms.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import onnx_ir as ir

from benchmarks.images import make_input, save_made_up
from benchmarks.tables import describe_machine, format_doubts, format_ratio, format_table
from vitdeploy import environment, passes, targets
from vitdeploy import recipe as recipes
from vitdeploy.graph.dialect import CONTRIB, Dialect
from vitdeploy.graph.model import Graph, array, dims, load, operand, producer
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.passes import PassResult, order
from vitdeploy.passes.drop_unread_tokens import DropUnreadTokens
from vitdeploy.pipeline.prepare import Options, Prepared, prepare
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec, Preprocess
from vitdeploy.session import Array

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
PROFILE_COLUMNS = ("model", "precision", "operator", "kernels", "ms", "share", "GOP/s")
FORM_COLUMNS = ("model", "form", "p50 ms", "relative speed", "measurement")
WRITTEN = targets.find(recipes.TargetSpec(kind="onnxruntime")).dialect()
"""The dialect in which vitdeploy writes for ONNX Runtime."""
_PROFILED = ("fp32", "int8", "int8-dynamic")
_RUNS = 50
_LARGEST_OPERATORS = 7  # rows of a profile
_CALIBRATION_IMAGES = 8  # their content does not matter here: it changes scales, not time
_INTEGER = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")

Rewrite = Callable[[Graph], object]


@dataclass(frozen=True)
class Form:
    """A way to write the model.

    Attributes:
        name: of the row.
        precision: that is written.
        dialect: that it is written in.
        rewrite: is applied last.
        keeps_unread: whether tokens that nothing reads stay in the graph.
    """

    name: str
    precision: str = "int8"
    dialect: Dialect = WRITTEN
    rewrite: Rewrite = lambda _: None
    keeps_unread: bool = False

    @property
    def folding(self) -> tuple[bool, bool]:
        """What decides how the float graph is folded."""
        return self.dialect.packed_qkv, self.keeps_unread


# ------------------------------------------------------------------------------------------------- other forms


def quantize_each_time(graph: Graph) -> None:
    """Give each linear a `DynamicQuantizeMatMul` of its own, even if others read the same activation."""
    for node in [n for n in graph.nodes if n.op_type == "MatMulIntegerToFloat"]:
        quantizer = producer(operand(node, 0), "DynamicQuantizeLinear")
        if quantizer is None:
            continue
        _, weight, _, weight_scale, _, *rest = node.inputs
        bias = rest[1] if len(rest) > 1 else None
        tape = ir.tape.Tape()
        inputs = [operand(quantizer, 0), weight, weight_scale, *([] if bias is None else [None, bias])]
        result = tape.op("DynamicQuantizeMatMul", inputs, domain=CONTRIB, name=node.name)
        graph.replace([node], tape, node.outputs[0], result)


def approximate_gelu(graph: Graph) -> None:
    """Compute GELU by tanh instead of erf. It gives other numbers, so vitdeploy does not offer it."""
    for node in [n for n in graph.nodes if n.op_type == "Gelu"]:
        node.attributes["approximate"] = ir.AttrString("approximate", "tanh")


def quantize_attention(graph: Graph) -> None:
    """Write `QAttention`: one kernel with one INT8 product for q, k and v, and the attention behind it."""
    for node in [n for n in graph.nodes if n.op_type == "MultiHeadAttention"]:
        packed = _packed_linear(node)
        if packed is None:
            continue
        codes, weight, scale, weight_scale, zero, *rest = packed.inputs
        tape = ir.tape.Tape()
        inputs = [codes, weight, rest[1], scale, weight_scale, None, zero]
        heads = node.attributes.get_int("num_heads", 1)
        # The kernel scales Q by 1/√d, and so do the weights that vitdeploy wrote. That does not change the time.
        options = {"num_heads": heads}
        result = tape.op("QAttention", inputs, options, domain=CONTRIB, name=f"{node.name}/fused")
        graph.replace([node], tape, node.outputs[0], result)


def _packed_linear(core: ir.Node) -> ir.Node | None:
    """Return the integer product that q, k and v of this attention all come from, for all of its tokens."""
    products = set()
    for index in range(3):
        node = producer(operand(core, index))
        while node is not None and node.op_type != "MatMulIntegerToFloat":
            if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0:
                return None  # only some of the tokens are read
            node = producer(operand(node, 0))
        products.add(node)
    return products.pop() if len(products) == 1 else None


PACKED = replace(WRITTEN, packed_qkv=True)
FORMS = (
    Form("vitdeploy int8"),
    Form("vitdeploy int8-dynamic", "int8-dynamic"),
    Form("with the tokens that nothing reads", keeps_unread=True),
    Form("one packed linear for q, k and v", dialect=PACKED),
    Form("`QAttention`: packed linear and attention in one kernel", dialect=PACKED, rewrite=quantize_attention),
    Form("Q/DQ pairs left to ONNX Runtime", dialect=replace(WRITTEN, int8_linears="qdq")),
    Form("attention as plain operators", dialect=replace(WRITTEN, attention="primitives")),
    Form("int8-dynamic, quantized for q, k and v each", "int8-dynamic", rewrite=quantize_each_time),
    Form("GELU by tanh (other numbers: not offered)", rewrite=approximate_gelu),
)


# --------------------------------------------------------------------------------------------------- measuring


class FormWriter:
    """Writes one model in any form. Its float graph is folded once for each way to fold it."""

    def __init__(self, model: str, folder: Path) -> None:
        self.model = model
        self._folder = folder
        self._prepared: dict[tuple[bool, bool], Prepared] = {}
        self._written = 0

    def feeds(self) -> dict[str, Array]:
        """Return an image as the model takes it, once something was written."""
        facts = next(iter(self._prepared.values())).facts
        return {facts.examples.input_name: make_input(facts.preprocess)}

    def write(self, form: Form) -> Path:
        """Quantize and lower the model in this form."""
        prepared = self._prepare(form)
        precision = PrecisionSpec.model_validate({"kind": form.precision, "smooth_alpha": "off"})
        graph = quantize(
            prepared.graph, prepared.structure, precision, form.dialect, prepared.calibration, Silent()
        ).graph
        passes.run(order.lowering(form.dialect), graph)
        form.rewrite(graph)
        self._written += 1
        path = self._folder / f"form{self._written}" / "graph.onnx"
        path.parent.mkdir()
        graph.save(path)
        return path

    def _prepare(self, form: Form) -> Prepared:
        if form.folding not in self._prepared:
            work = self._folder / f"prepared{len(self._prepared)}"
            work.mkdir()
            images = save_made_up(work / "images.npz", Preprocess(size=(224, 224)), _CALIBRATION_IMAGES)
            recipe = recipes.compose(
                f"timm:{self.model}", target="onnxruntime", precision="int8", weights="random", calibration=images
            )
            with _keep_unread_tokens() if form.keeps_unread else nullcontext():
                prepared = prepare(recipe, form.dialect, work, Silent(), Options(calibrated=True))
            self._prepared[form.folding] = prepared
        return self._prepared[form.folding]


def _keep_unread_tokens() -> AbstractContextManager[object]:
    return mock.patch.object(DropUnreadTokens, "apply", return_value=PassResult(0))


def profile(writer: FormWriter) -> Iterator[tuple[str, ...]]:
    """Yield rows of the milliseconds of each operator in one inference, with the rate at which linears multiply."""
    for precision in _PROFILED:
        path = writer.write(Form(precision, precision))
        with OnnxSession(path, threads=environment.available_cores(), profile=path.with_name("run")) as session:
            for _ in range(_RUNS):
                session.run(writer.feeds())
            events = json.loads(session.end_profile().read_text(encoding="utf-8"))
        times, counts = Counter[str](), Counter[str]()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["args"]["op_name"]] += event["dur"]
                counts[event["args"]["op_name"]] += 1
        total, work = sum(times.values()), _count_multiplications(path)
        for op, microseconds in times.most_common(_LARGEST_OPERATORS):
            ms = microseconds / 1000 / _RUNS
            rate = f"{2 * work / ms / 1e6:.0f}" if op in ("Gemm", *_INTEGER) else ""
            share = f"{100 * microseconds / total:.0f} %"
            yield writer.model, precision, op, str(counts[op] // _RUNS), f"{ms:.2f}", share, rate


def _count_multiplications(path: Path) -> int:
    """Count the multiplications of the linears in one inference."""
    graph = load(path)
    graph.infer_shapes()
    total = 0
    for node in graph.nodes:
        if node.op_type not in ("MatMul", *_INTEGER):
            continue
        weight = node.inputs[1]
        if weight is not None and weight.const_value is not None:
            shape = dims(operand(node, 0)) or (1,)
            total += array(weight).size * int(np.prod([n or 1 for n in shape[:-1]]))
    return total


def compare_forms(writer: FormWriter, seconds: float) -> Iterator[tuple[str, ...]]:
    """Time every form in turns; yield rows of each against what vitdeploy writes."""
    threads = environment.available_cores()
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(OnnxSession(writer.write(form), threads=threads, name=form.name)) for form in FORMS
        ]
        bench = measure(sessions, [writer.feeds()] * len(sessions), batch=1, seconds=seconds)
    for run in bench.runs:
        yield writer.model, run.name, f"{run.p50_ms:.2f}", format_ratio(run.speedup), format_doubts(bench)


def main() -> None:
    """Profile and measure every model, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each model's forms (default: 60)")
    parser.add_argument("models", nargs="*", default=MODELS, help="timm's names (default: those of the table)")
    arguments = parser.parse_args()
    profiles: list[tuple[str, ...]] = []
    forms: list[tuple[str, ...]] = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            writer = FormWriter(name, Path(folder))
            profiles += profile(writer)
            forms += compare_forms(writer, arguments.seconds)
        TABLE.write_text(_page(profiles, forms), encoding="utf-8")


def _page(profiles: list[tuple[str, ...]], forms: list[tuple[str, ...]]) -> str:
    return "\n".join(
        [
            "# INT8 on ONNX Runtime: where the time goes, and other forms",
            "",
            "Made by `python -m benchmarks.int8_forms`; random weights, batch 1.",
            "",
            describe_machine("timm", "onnxruntime"),
            "",
            "## Where the time goes",
            "",
            "ONNX Runtime's own profile of what vitdeploy writes: milliseconds in one inference, the mean of",
            f"{_RUNS} runs; for linears also the rate in GOP/s, with two operations a multiplication.",
            "",
            *format_table(PROFILE_COLUMNS, profiles),
            "",
            "## Other forms",
            "",
            "Median latency, and the speed relative to what `--precision int8` writes, with its 95 % bootstrap",
            "interval over interleaved blocks. Above 1 is faster.",
            "",
            *format_table(FORM_COLUMNS, forms),
            "",
        ]
    )


if __name__ == "__main__":
    main()
