"""Write benchmarks/zoo.md from the rows."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import format_table
from benchmarks.zoo.entry import Entry
from benchmarks.zoo.rows import INT8_TARGETS, LARGEST_RELATIVE_DIFFERENCE, ROUTES, TARGETS, Case, Row

PAGE = Path(__file__).parents[1] / "zoo.md"
ENOUGH_PCT = 80.0
"""Below this share of quantized weights the page names the rules that keep the rest."""
_NAMED_LIBRARIES = ("torch", "timm", "transformers", "torchvision", "onnxruntime", "openvino", "tensorrt-rtx")
_SHORT = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt-rtx": "TensorRT-RTX"}


def format_page(rows: Mapping[Case, Row], stamps: Mapping[str, Mapping[str, Any]], entries: Mapping[str, Entry]) -> str:
    """Return the page: how it was made, a line for each model, INT8, and everything that is not whole."""
    made = [row for row in rows.values() if row.model in entries]
    parts = [
        ["# The zoo", "", *_INTRODUCTION, "", *_list_stamps(made, stamps), "", *_summarize(made, entries)],
        ["## Attention", "", *_ATTENTION, "", *_attention_table(rows, entries)],
        ["## INT8", "", *_INT8, "", *_int8_table(rows, entries)],
        ["## Attention that is not fused", "", *_reason_table(made, lambda row: row.unfused, "sites")],
        ["## LayerNorms that are not one kernel", "", *_reason_table(made, lambda row: row.unfused_norms, "norms")],
        ["## Other counts and other numbers", "", *_problem_table(made)],
        ["## Softmaxes that are no attention", "", *_other_table(entries)],
        ["## No artifact", "", *_error_table(made)],
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


_INTRODUCTION = (
    "Every model with redrawn weights, exported, raised, compiled and audited: from the module, and from two ONNX",
    "files with a dynamic batch that the legacy exporter wrote, in opset 17 and in opset 14, which has no",
    "LayerNormalization. Configurations are small. Made by `make zoo` from `benchmarks/zoo/rows.jsonl`; a run that was",
    "stopped continues.",
)
_ATTENTION = (
    "`attentions`: the softmaxes and fused operators that were counted while the model ran in PyTorch and that its",
    "outputs depend on. Cells: fused / recognised, in OpenVINO fp32, ONNX Runtime fp32, TensorRT-RTX fp16 for sm86.",
    "`difference`: the largest one of float32 to PyTorch (for files: to ONNX Runtime on the untouched file), relative",
    "to the largest reference value. `norms`: LayerNorms that are one kernel, of the module, in the same order.",
)
_INT8 = (
    "From the module, calibrated on photographs. `weights`: the share of all weights that is quantized in what was",
    f"compiled. Below {ENOUGH_PCT:.0f} %, what keeps the rest in float, with its share of the products with weights.",
)


def _list_stamps(rows: Sequence[Row], stamps: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield what the rows were made with; on one commit and machine that is one line."""
    for name, count in Counter(row.stamp for row in rows).most_common():
        stamp = stamps[name]
        versions = ", ".join(f"{lib} {stamp['versions'][lib]}" for lib in _NAMED_LIBRARIES if lib in stamp["versions"])
        yield (
            f"{count} rows: `vitdeploy/` of git tree {stamp['package'][:10]}; {stamp['cpu']}, "
            f"{stamp['threads']} threads, {' '.join(stamp['isa'])}; {versions}."
        )


def _summarize(rows: Sequence[Row], entries: Mapping[str, Entry]) -> list[str]:
    """Return the counts that a reader wants first, and the models that are not in this run."""
    done = [row for row in rows if not row.error]
    whole = [row for row in done if row.fused == row.attentions]
    unlike = [row for row in done if row.problems]
    missing = sorted(set(entries) - {row.model for row in rows}, key=list(entries).index)
    return [
        f"{len({row.model for row in rows})} models, {len(rows)} rows: {len(done)} artifacts, of which "
        f"{len(whole)} have every attention fused, and {len(unlike)} have another count or other numbers.",
        *(["", f"Not run at this commit: {', '.join(missing)}."] if missing else []),
    ]


def _attention_table(rows: Mapping[Case, Row], entries: Mapping[str, Entry]) -> list[str]:
    columns = ("model", "attentions", *ROUTES, "difference", "norms")
    lines = []
    for model in entries:
        by_route = {
            route: [rows.get(Case(model, route, target, kind)) for target, kind in TARGETS.items()] for route in ROUTES
        }
        made = [row for group in by_route.values() for row in group if row is not None]
        if made:
            counts = {row.attentions for row in made if row.attentions is not None}
            cells = [_join(map(_fused_cell, group)) for group in by_route.values()]
            norms = _join(map(_norm_cell, by_route["module"]))
            lines.append((model, "/".join(map(str, counts)), *cells, _worst_difference(made), norms))
    return format_table(columns, lines)


def _join(cells: Iterable[str]) -> str:
    """Return one cell for all targets if they are alike."""
    listed = list(cells)
    return listed[0] if len(set(listed)) == 1 else ", ".join(listed)


def _fused_cell(row: Row | None) -> str:
    if row is None:
        return "…"
    return "–" if row.error else f"{row.fused} of {row.sites}"


def _norm_cell(row: Row | None) -> str:
    if row is None:
        return "…"
    return "–" if row.norms is None else f"{row.norms_fused} of {row.norms}"


def _worst_difference(rows: Iterable[Row]) -> str:
    differences = [row.difference for row in rows if row.precision == "fp32" and row.difference is not None]
    if not differences:
        return ""
    unlike = [value for value in differences if not value <= LARGEST_RELATIVE_DIFFERENCE]
    return f"**{unlike[0]:.0e}**" if unlike else f"{max(differences):.0e}"


def _int8_table(rows: Mapping[Case, Row], entries: Mapping[str, Entry]) -> list[str]:
    columns = ("model", "target", "fused", "weights", "norms", "in float")
    lines = []
    for model in entries:
        for target in INT8_TARGETS:
            row = rows.get(Case(model, "module", target, "int8"))
            if row is not None and not row.error:
                share = "" if row.weights_pct is None else f"{row.weights_pct:.1f} %"
                few = row.weights_pct is not None and row.weights_pct < ENOUGH_PCT
                rules = "; ".join(f"{rule}: {pct:.1f} %" for rule, pct in row.outside.items()) if few else ""
                lines.append((model, _SHORT[target], _fused_cell(row), share, _norm_cell(row), rules))
    return format_table(columns, lines)


def _reason_table(rows: Sequence[Row], reasons_of: Any, unit: str) -> list[str]:
    """Return each model's reasons, with the forms and targets that have them."""
    where: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        for reason, count in reasons_of(row).items():
            where[row.model, reason, count].append(row)
    lines = [(model, str(count), _list_forms(forms), reason) for (model, reason, count), forms in where.items()]
    return format_table(("model", unit, "where", "reason"), lines) if lines else ["None."]


def _problem_table(rows: Sequence[Row]) -> list[str]:
    where: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        for problem in row.problems:
            where[row.model, problem].append(row)
    lines = [(model, _list_forms(forms), problem) for (model, problem), forms in where.items()]
    return format_table(("model", "where", "what"), lines) if lines else ["None."]


def _error_table(rows: Sequence[Row]) -> list[str]:
    where: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.error:
            where[row.model, row.error].append(row)
    lines = [(model, _list_forms(forms), error) for (model, error), forms in where.items()]
    return format_table(("model", "where", "reason"), lines) if lines else ["None."]


def _other_table(entries: Mapping[str, Entry]) -> list[str]:
    lines = [(name, str(e.other_softmaxes), e.others) for name, e in entries.items() if e.other_softmaxes]
    return format_table(("model", "softmaxes", "what they are"), lines) if lines else ["None."]


def _list_forms(rows: Sequence[Row]) -> str:
    """Return the routes and targets of rows: "module, onnx 17: OpenVINO fp32, ONNX Runtime fp32"."""
    targets: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        targets[row.route].append(f"{_SHORT[row.target]} {row.precision}")
    routes: dict[str, list[str]] = defaultdict(list)
    for route, listed in targets.items():
        routes[", ".join(listed)].append(route)
    return "; ".join(f"{', '.join(names)}: {listed}" for listed, names in routes.items())
