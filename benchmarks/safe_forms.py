"""Compile every safe form of four models with TensorRT-RTX, without a GPU: what stays fused, and what each form adds.

    python -m benchmarks.safe_forms [--only NAME]

Each model is exported in FP16, and each of its safe forms is built for each generation of GPUs. Everything about the
engines is read back from their layer plans. Writes benchmarks/safe_forms.md.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx_ir as ir

from benchmarks.rtx_engines import MODELS as ENGINES
from benchmarks.tables import describe_machine, read_rows, write_page
from vitdeploy import targets
from vitdeploy.artifact import Manifest
from vitdeploy.artifact.layout import GRAPH, SITES
from vitdeploy.commands.export import export
from vitdeploy.data.preprocess import to_input
from vitdeploy.data.synthetic import natural_image
from vitdeploy.evidence import Audit
from vitdeploy.graph.model import Graph, constant, load
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.structure import Structure
from vitdeploy.graph.structure import load as load_structure
from vitdeploy.pipeline.safe_forms import SafeForm, list_safe_forms
from vitdeploy.progress import Silent
from vitdeploy.recipe import Recipe, TargetSpec
from vitdeploy.runtime.artifact_session import read_bundle
from vitdeploy.session import Array
from vitdeploy.targets._tensorrt.layers import LAYERS

MODELS = {
    "DeiT-Tiny": ENGINES["DeiT-Tiny"],
    "EVA02-Tiny (rotary positions)": ("timm:eva02_tiny_patch14_224", 224),
    "Swin-Tiny": ENGINES["Swin-Tiny"],
    "DPT (small backbone, 384 px)": ENGINES["DPT (small backbone, 384 px)"],
}
GENERATIONS = ("sm86", "sm89")
TABLE = Path(__file__).with_name("safe_forms.md")
COLUMNS = (
    "model", "form", "for", "attention fused", "products", "kernels", "only copy", "only cast", "plan as plain",
    "engine, MB", "graph, kB", "new weights, kB", "difference",
)  # fmt: skip
_SHARED_BYTES = 1 << 10
"""Weights of this size and more are stored in the file that variants share."""
# TensorRT's compiler numbers the values that it adds. The numbers differ from build to build, the plan does not.
_ADDED_VALUE = re.compile(r"__mye\d+")


@dataclass(frozen=True)
class Build:
    """One engine.

    Attributes:
        audit: read back from its layer plan.
        plan: the plan, without the numbers of added values.
        size: bytes of the engine.
    """

    audit: Audit
    plan: str
    size: int


@dataclass(frozen=True)
class Plain:
    """The plain form of a model, to which the others are compared."""

    manifest: Manifest
    graph: Graph
    structure: Structure
    feeds: dict[str, Array]
    answers: dict[str, Array]
    builds: dict[str, Build]


def main() -> None:
    """Build everything, and write the table row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="NAME", help="only models whose name contains this")
    only = parser.parse_args().only
    chosen = [name for name in MODELS if only in name]
    rows = {
        name: [row for row in read_rows(TABLE, COLUMNS) if row[0] == name and name not in chosen] for name in MODELS
    }
    with tempfile.TemporaryDirectory() as folder:
        for name in chosen:
            for row in _rows(name, *MODELS[name], Path(folder) / name):
                rows[name].append(row)
                print(*row, sep=" | ", flush=True)
                write_page(TABLE, _heading(), COLUMNS, chain.from_iterable(rows.values()))


def _rows(name: str, spec: str, size: int, out: Path) -> Iterator[tuple[str, ...]]:
    """Export a model, and build each of its forms for every generation; all blocks in FP32 make one row."""
    plain = _export(spec, size, out)
    for generation, build in plain.builds.items():
        yield name, "plain", generation, *_cells([build], build), "", "", ""
    forms = list_safe_forms(plain.graph, plain.structure)
    for left_out, reason in forms.left_out.items():
        yield (name, left_out, "", f"left out: {reason}", *[""] * (len(COLUMNS) - 4))
    blocks = [form for form in forms.forms if form.block is not None]
    for form in forms.forms:
        if form in blocks[1:]:
            continue
        group = blocks if form in blocks else [form]
        title = f"fp32-block-N ({len(group)})" if form in blocks else form.name
        saved = [_save(each, plain, out / each.name) for each in group]
        for generation in GENERATIONS:
            level = form.optimization_level
            builds = [_build(plain.manifest, folder, generation, level) for folder, _ in saved]
            cells = _cells(builds, plain.builds[generation])
            yield name, title, generation, *cells, *_graph_cells(saved if form.has_graph else [], plain)


def _export(spec: str, size: int, out: Path) -> Plain:
    raw = {
        "model": {"spec": spec, **({"weights": "random"} if spec.startswith("timm:") else {})},
        "preprocess": {"size": [size, size]},
        "target": {"kind": "tensorrt-rtx"},
        "precision": {"kind": "fp16"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        manifest = export(Recipe.model_validate(raw), out, Silent()).artifact.manifest
    preprocess = manifest.preprocess
    image = to_input(natural_image(0, preprocess, 1), preprocess, manifest.recipe.target.input)
    builds = {generation: _build(manifest, out, generation) for generation in GENERATIONS}
    graph, structure = load(out / GRAPH), load_structure(out / SITES)
    feeds = {manifest.inputs[0].name: image}
    return Plain(manifest, graph, structure, feeds, _run(out, feeds), builds)


def _save(form: SafeForm, plain: Plain, folder: Path) -> tuple[Path, Graph]:
    """Write the graph and the sites of a form into a folder of its own."""
    rewritten = form.rewrite(plain.graph, plain.structure)
    folder.mkdir()
    rewritten.graph.save(folder / GRAPH)
    rewritten.structure.save(folder / SITES)
    return folder, rewritten.graph


def _build(manifest: Manifest, folder: Path, generation: str, level: int | None = None) -> Build:
    target = targets.find(
        TargetSpec.model_validate({"kind": "tensorrt-rtx", "device": generation, "optimization_level": level})
    )
    with tempfile.TemporaryDirectory() as work:
        compiled = target.compile(read_bundle(folder, manifest), Path(work))
        assert compiled.audit is not None
        plan = _ADDED_VALUE.sub("", (Path(work) / LAYERS).read_text(encoding="utf-8"))
        return Build(compiled.audit, plan, (Path(work) / compiled.runs).stat().st_size)


def _run(folder: Path, feeds: dict[str, Array]) -> dict[str, Array]:
    with OnnxSession(folder / GRAPH) as session:
        return session.run(feeds)


def _cells(builds: list[Build], plain: Build) -> tuple[str, ...]:
    """Return what the plans say; a range where the engines of several blocks differ."""

    def span(numbers: Iterable[float], digits: int = 0) -> str:
        texts = sorted({f"{number:.{digits}f}" for number in numbers}, key=float)
        return " to ".join(dict.fromkeys((texts[0], texts[-1])))

    engines = [build.audit.engine for build in builds]
    kinds = sorted({kind for engine in engines if engine for kind in engine.gemms})
    products = ", ".join(f"{span(engine.gemms.get(kind, 0) for engine in engines if engine)} {kind}" for kind in kinds)
    sites = builds[0].audit.attention.sites
    return (
        f"{span(build.audit.attention.fused for build in builds)} of {sites}",
        products,
        *(span(getattr(engine, field) for engine in engines) for field in ("kernels", "reformats", "casts")),
        "yes" if all(build.plan == plain.plan for build in builds) else "no",
        span((build.size / 1e6 for build in builds), 1),
    )


def _graph_cells(saved: list[tuple[Path, Graph]], plain: Plain) -> tuple[str, ...]:
    """Return what the graphs of a form add to a bundle, and the largest difference to the plain form's answers."""
    if not saved:
        return "", "", ""
    own = _large_weights(plain.graph)
    small = sum(_size_without_weights(graph) for _, graph in saved)
    new = {key: size for _, graph in saved for key, size in _large_weights(graph).items() if key not in own}
    differences = []
    for folder, _ in saved:
        for name, answer in _run(folder, plain.feeds).items():
            expected = plain.answers[name].astype(np.float64)
            differences.append(np.abs(answer - expected).max() / np.abs(expected).max())
    return f"{small / 1e3:.0f}", f"{sum(new.values()) / 1e3:.0f}", f"{max(differences):.1e}"


def _large_weights(graph: Graph) -> dict[bytes, int]:
    """Return the bytes of each weight that variants share."""
    tensors = (constant(value) for value in graph.model.graph.initializers.values())
    large = (tensor for tensor in tensors if tensor is not None and tensor.nbytes >= _SHARED_BYTES)
    return {tensor.tobytes(): tensor.nbytes for tensor in large}


def _size_without_weights(graph: Graph) -> int:
    """Return the bytes of the graph's file when its large weights are in another one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / GRAPH
        ir.save(graph.model.clone(), path, external_data="weights", size_threshold_bytes=_SHARED_BYTES)
        return path.stat().st_size


def _heading() -> list[str]:
    return [
        "# Safe forms, compiled with TensorRT-RTX without a GPU",
        "",
        "Each model is exported in FP16 with random weights. [Safe forms](../docs/compatibility.md#safe-forms) compute",
        "the same in another way, for a compiler that gives wrong numbers. Each is built for SM86 and for SM89.",
        "Everything about the engines is read back from their layer plans. The row of `fp32-block-N` is about one",
        "engine for each block: a range where they differ, and the sum of the bytes of their graphs.",
        "",
        "| column | meaning |",
        "|---|---|",
        "| products | the kernels that multiply; linears that are merged count once |",
        "| kernels | with steps that only wait for another stream, where products run side by side |",
        "| only copy, only cast | kernels that do nothing else |",
        "| plan as plain | whether the layer plan is that of the plain form, line by line |",
        "| graph | what its graph adds to a bundle, without weights of 1 kB and more |",
        "| new weights | what it adds to the file of these weights, which all forms share |",
        "| difference | the largest one to the plain graph's answers, relative to the largest answer, on one image. |",
        "",
        "The difference is that of two graphs in ONNX Runtime, whose FP16 rounds in other places than TensorRT's.",
        "",
        f"{describe_machine('tensorrt-rtx', 'torch', 'timm', 'transformers')} Nothing here ran on a GPU. Made by",
        "`python -m benchmarks.safe_forms`.",
    ]


if __name__ == "__main__":
    main()
