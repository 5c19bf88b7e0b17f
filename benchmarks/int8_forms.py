"""Where does the time of an INT8 ViT go on ONNX Runtime, and what was tried to get at it?

    python -m benchmarks.int8_forms [--seconds S] [MODEL…]

First ONNX Runtime's own profile of vitdeploy's artifacts, by operator. Then other ways to write the same INT8 model,
all interleaved in one process with the one that vitdeploy writes. Writes benchmarks/int8_forms.md.
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

from benchmarks.tables import machine, table
from vitdeploy import environment, passes, targets
from vitdeploy import recipe as recipes
from vitdeploy.data.preprocess import normalize
from vitdeploy.data.synthetic import natural_image
from vitdeploy.graph.dialect import CONTRIB, Dialect
from vitdeploy.graph.model import Graph, array, operand, producer
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.measure.latency import measure
from vitdeploy.passes import PassResult, order
from vitdeploy.passes.drop_unread_tokens import DropUnreadTokens
from vitdeploy.pipeline.prepare import Prepared, prepare
from vitdeploy.precision import quantize
from vitdeploy.progress import Silent
from vitdeploy.recipe import PrecisionSpec
from vitdeploy.session import Array

MODELS = ("deit_tiny_patch16_224", "vit_base_patch16_224")
TABLE = Path(__file__).with_suffix(".md")
WRITTEN = targets.find(recipes.TargetSpec(kind="onnxruntime")).dialect()
_PROFILED = ("fp32", "int8", "int8-dynamic")
_RUNS = 50
_CALIBRATION_IMAGES = 8  # their content is no matter here: it moves scales, not time

Rewrite = Callable[[Graph], object]


@dataclass(frozen=True)
class Form:
    """A way to write the model. `rewrite` is applied last; `whole` keeps the tokens that nothing reads."""

    name: str
    precision: str = "int8"
    dialect: Dialect = WRITTEN
    rewrite: Rewrite = lambda _: None
    whole: bool = False

    @property
    def prepared_as(self) -> tuple[bool, bool]:
        """What decides how the float graph is folded."""
        return self.dialect.packed_qkv, self.whole


# ----------------------------------------------------------------------------------------------- what was tried


def quantize_each_time(graph: Graph) -> None:
    """Dynamic INT8 with a `DynamicQuantizeMatMul` for each linear, whatever else reads the same activation."""
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


def tanh_gelu(graph: Graph) -> None:
    """GELU by tanh instead of erf: other numbers, so it is not offered."""
    for node in [n for n in graph.nodes if n.op_type == "Gelu"]:
        node.attributes["approximate"] = ir.AttrString("approximate", "tanh")


def quantized_attention(graph: Graph) -> None:
    """`QAttention`: q, k and v in one INT8 product, and the attention behind it, in one kernel."""
    for node in [n for n in graph.nodes if n.op_type == "MultiHeadAttention"]:
        packed = _packed_linear(node)
        if packed is None:
            continue
        codes, weight, scale, weight_scale, zero, *rest = packed.inputs
        tape = ir.tape.Tape()
        inputs = [codes, weight, rest[1], scale, weight_scale, None, zero]
        heads = node.attributes.get_int("num_heads", 1)
        # Q is scaled by 1/√d inside, and by vitdeploy in the weights: time does not tell.
        options = {"num_heads": heads}
        result = tape.op("QAttention", inputs, options, domain=CONTRIB, name=f"{node.name}/fused")
        graph.replace([node], tape, node.outputs[0], result)


def _packed_linear(core: ir.Node) -> ir.Node | None:
    """The integer product that q, k and v of this attention all come from, for all of its tokens."""
    found = set()
    for index in range(3):
        node = producer(operand(core, index))
        while node is not None and node.op_type != "MatMulIntegerToFloat":
            if node.op_type == "Gather" and node.attributes.get_int("axis", 0) != 0:
                return None  # only some tokens are asked for
            node = producer(operand(node, 0))
        found.add(node)
    return found.pop() if len(found) == 1 else None


PACKED = replace(WRITTEN, packed_qkv=True)
FORMS = (
    Form("vitdeploy int8"),
    Form("vitdeploy int8-dynamic", "int8-dynamic"),
    Form("with the tokens that nothing reads", whole=True),
    Form("one packed linear for q, k and v", dialect=PACKED),
    Form("`QAttention`: packed linear and attention in one kernel", dialect=PACKED, rewrite=quantized_attention),
    Form("Q/DQ pairs left to ONNX Runtime", dialect=replace(WRITTEN, int8_linears="qdq")),
    Form("attention as plain operators", dialect=replace(WRITTEN, attention="primitives")),
    Form("int8-dynamic, quantized for q, k and v each", "int8-dynamic", rewrite=quantize_each_time),
    Form("GELU by tanh (other numbers: not offered)", rewrite=tanh_gelu),
)


# --------------------------------------------------------------------------------------------------- measuring


class Bench:
    """One model, its graph folded once for each way to fold it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._prepared: dict[tuple[bool, bool], Prepared] = {}
        self._written = 0

    def image(self) -> dict[str, Array]:
        """A picture as the model takes it."""
        prepared = next(iter(self._prepared.values()))
        pixels = natural_image(0, prepared.facts.preprocess, 1)
        return {prepared.facts.examples.input_name: normalize(pixels, prepared.facts.preprocess)}

    def write(self, form: Form) -> Path:
        """Quantize and lower in this form."""
        prepared = self._prepare(form)
        precision = PrecisionSpec.model_validate({"kind": form.precision, "smooth_alpha": "off"})
        made = quantize(prepared.graph, prepared.structure, precision, form.dialect, prepared.calibration, Silent())
        passes.run(order.lowering(form.dialect), made.graph)
        form.rewrite(made.graph)
        self._written += 1
        path = self._folder / f"form{self._written}" / "graph.onnx"
        path.parent.mkdir()
        made.graph.save(path)
        return path

    def _prepare(self, form: Form) -> Prepared:
        if form.prepared_as not in self._prepared:
            work = self._folder / f"prepared{len(self._prepared)}"
            work.mkdir()
            # OpenVINO's dialect is the one that keeps q, k and v packed.
            target = targets.find(recipes.TargetSpec(kind="openvino" if form.dialect.packed_qkv else "onnxruntime"))
            recipe = recipes.compose(
                f"timm:{self.name}", target="onnxruntime", precision="int8", weights="random",
                calibration=_images(self._folder / "images.npz"),
            )  # fmt: skip
            with _whole() if form.whole else nullcontext():
                self._prepared[form.prepared_as] = prepare(recipe, target, work, Silent(), calibrated=True)
        return self._prepared[form.prepared_as]


def _whole() -> AbstractContextManager[object]:
    return mock.patch.object(DropUnreadTokens, "apply", return_value=PassResult(0))


def _images(path: Path) -> str:
    if not path.exists():
        images = natural_image(0, recipes.Preprocess(size=(224, 224)), _CALIBRATION_IMAGES)
        np.savez(path, images=images.transpose(0, 2, 3, 1))
    return str(path)


def profile(bench: Bench) -> Iterator[tuple[str, ...]]:
    """Milliseconds of each operator in one inference, and the multiplications a second of the linears."""
    for precision in _PROFILED:
        path = bench.write(Form(precision, precision))
        with OnnxSession(path, threads=environment.available_cores(), profile=path.with_name("run")) as session:
            for _ in range(_RUNS):
                session.run(bench.image())
            events = json.loads(session.end_profile().read_text(encoding="utf-8"))
        times, counts = Counter[str](), Counter[str]()
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                times[event["args"]["op_name"]] += event["dur"]
                counts[event["args"]["op_name"]] += 1
        whole = sum(times.values())
        work = _linear_work(path)
        for op, spent in times.most_common(7):
            ms = spent / 1000 / _RUNS
            speed = f"{2 * work / ms / 1e6:.0f}" if op in ("Gemm", *_INTEGER) else ""
            yield (
                bench.name,
                precision,
                op,
                str(counts[op] // _RUNS),
                f"{ms:.2f}",
                f"{100 * spent / whole:.0f} %",
                speed,
            )


_INTEGER = ("MatMulIntegerToFloat", "DynamicQuantizeMatMul")


def _linear_work(path: Path) -> int:
    """Multiplications of the linears in one inference."""
    from vitdeploy.graph.model import dims, load

    graph = load(path)
    graph.infer_shapes()
    total = 0
    for node in graph.nodes:
        if (
            node.op_type in ("MatMul", *_INTEGER)
            and (weight := node.inputs[1]) is not None
            and weight.const_value is not None
        ):
            rows = dims(operand(node, 0))
            total += array(weight).size * int(np.prod([n or 1 for n in (rows or (1,))[:-1]]))
    return total


def tried(bench: Bench, seconds: float) -> Iterator[tuple[str, ...]]:
    """Every form, interleaved; each against what vitdeploy writes."""
    threads = environment.available_cores()
    with ExitStack() as stack:
        sessions = [
            stack.enter_context(OnnxSession(bench.write(form), threads=threads, name=form.name)) for form in FORMS
        ]
        found = measure(sessions, [bench.image()] * len(sessions), batch=1, seconds=seconds)
    doubt = "; ".join(found.doubts)[:120] or "valid"
    for run in found.runs:
        ratio = run.speedup
        told = "1" if ratio is None else f"{ratio.ratio:.3f} [{ratio.ci95[0]:.3f}, {ratio.ci95[1]:.3f}]"
        yield bench.name, run.name, f"{run.p50_ms:.2f}", told, doubt


def main() -> None:
    """Profile and measure every model, and write both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each model's forms (default: 60)")
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    profiles: list[tuple[str, ...]] = []
    forms: list[tuple[str, ...]] = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(name, Path(folder))
            profiles += profile(bench)
            forms += tried(bench, arguments.seconds)
        TABLE.write_text(_page(profiles, forms), encoding="utf-8")


def _page(profiles: list[tuple[str, ...]], forms: list[tuple[str, ...]]) -> str:
    return "\n".join(
        [
            "# INT8 on ONNX Runtime: where the time goes, and what was tried",
            "",
            "Made by `python -m benchmarks.int8_forms`; random weights, batch 1.",
            "",
            machine("timm", "onnxruntime"),
            "",
            "## Where the time goes",
            "",
            f"ONNX Runtime's own profile of what vitdeploy writes: milliseconds in one inference, mean of {_RUNS}; for",
            "linears the speed in GOP/s (two operations to a multiplication).",
            "",
            *table(("model", "precision", "operator", "kernels", "ms", "share", "GOP/s"), profiles),
            "",
            "## What was tried",
            "",
            "Median latency, and the speed relative to what `--precision int8` writes, with its 95 % bootstrap",
            "interval over interleaved blocks: above 1 is faster.",
            "",
            *table(("model", "form", "p50 ms", "relative speed", "measurement"), forms),
            "",
        ]
    )


if __name__ == "__main__":
    main()
