"""Export every model of the zoo to every target, and write what fused to benchmarks/zoo.md.

    python -m benchmarks.zoo [NAME…]

Each model is exported three times: as a module through the exporter ladder, and from two ONNX files with a dynamic
batch that the legacy exporter wrote, in opset 17 and in opset 14, which has no LayerNormalization yet. The number of
attentions is counted while the model runs. It does not rely on what vitdeploy recognises.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.tables import describe_machine
from benchmarks.zoo import models
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.progress import Silent

TABLE = Path(__file__).parents[1] / "zoo.md"
TARGETS = ("openvino", "onnxruntime", "tensorrt-rtx")
ROUTES = {"module": None, "onnx 17": 17, "onnx 14": 14}
"""The form in which vitdeploy gets the model, and the opset if that is a file."""
LARGEST_RELATIVE_DIFFERENCE = 1e-4  # float32, of the largest reference value
_NOTE = 200


@dataclass(frozen=True)
class Row:
    """One model on one target."""

    model: str
    route: str
    target: str
    sites: int
    raised: str
    fused: str
    difference: str
    seconds: float
    note: str

    def __str__(self) -> str:
        figures = f"{self.sites} | {self.raised} | {self.fused} | {self.difference} | {self.seconds:.0f}"
        return f"| {self.model} | {self.route} | {self.target} | {figures} | {self.note} |"


def main(names: list[str]) -> None:
    """Run the zoo and write the table as it grows; with names, run only these and write nothing."""
    chosen = names or list(models.MODELS)
    rows: list[Row] = []
    for name in chosen:
        for row in _rows(name):
            print(row, flush=True)
            rows.append(row)
        if not names:
            TABLE.write_text(_table(rows), encoding="utf-8")


def _rows(name: str) -> Iterator[Row]:
    entry = models.MODELS[name]
    model = models.build(name)
    sites = models.count_attentions(model, entry.size)
    with tempfile.TemporaryDirectory() as folder:
        for route, opset in ROUTES.items():
            spec = f"python:{models.__name__}:build"
            if opset is not None:
                onnx = Path(folder) / f"opset{opset}.onnx"
                try:
                    _save_legacy(model, entry.size, opset, onnx)
                except Exception as error:  # noqa: BLE001  an exporter's failure is a row of the table
                    yield _failed_row(name, route, "–", sites, 0, f"legacy exporter: {_first_line(error)}")
                    continue
                spec = str(onnx)
            for target in TARGETS:
                yield _row(name, route, spec, target, sites, Path(folder) / f"{route}-{target}")


def _row(name: str, route: str, spec: str, target: str, sites: int, out: Path) -> Row:
    started = time.monotonic()
    size = "x".join(str(n) for n in models.MODELS[name].size)
    recipe = recipes.compose(spec, target=target, image_size=size)
    if route == "module":
        recipe = replace(recipe, model=replace(recipe.model, kwargs={"name": name}))
    try:
        result = export(recipe, out, Silent())
        audit = inspect(result.artifact)
    except VitdeployError as error:
        return _failed_row(name, route, target, sites, time.monotonic() - started, f"error: {error.message[:200]}")
    refused = {r.site: r.reason for p in result.summary.passes for r in p.refused if p.name == "raise-attention"}
    parity = result.summary.graph_parity
    difference = parity.max_abs / parity.reference_max if parity is not None else float("nan")
    notes = _notes(audit, refused)
    if audit.attention.sites != sites:
        notes.insert(0, f"**{audit.attention.sites} sites found**")
    if audit.precision == "fp32" and not difference <= LARGEST_RELATIVE_DIFFERENCE:
        notes.insert(0, "**numbers differ**")
    return Row(
        name, route, f"{target} {audit.precision}", sites, f"{audit.attention.sites - len(refused)}",
        f"{audit.attention.fused}", f"{difference:.0e}", time.monotonic() - started, "; ".join(notes),
    )  # fmt: skip


def _failed_row(name: str, route: str, target: str, sites: int, seconds: float, reason: str) -> Row:
    return Row(name, route, target, sites, "–", "–", "–", seconds, reason)


def _notes(audit: Audit, refused: Mapping[str, str]) -> list[str]:
    """Return why sites are not fused, each reason once, without the kernels, which `vitdeploy inspect` shows."""
    reasons = Counter(
        refused.get(u.site) or re.sub(r"; runs as .*|(?<=runs as )(\d+ kernels?)[:,].*", r"\1", u.reason)
        for u in audit.attention.unfused
    )
    return [f"{n} {'site' if n == 1 else 'sites'}: {reason}"[:_NOTE] for reason, n in reasons.items()]


def _save_legacy(model: torch.nn.Module, size: tuple[int, int], opset: int, path: Path) -> None:
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (torch.zeros(1, 3, *size),), str(path), dynamo=False, opset_version=opset,
                input_names=["image"], dynamic_axes={"image": {0: "batch"}},
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _table(rows: list[Row]) -> str:
    machine = describe_machine("torch", "onnxruntime", "openvino", "tensorrt-rtx")
    return "\n".join(
        [
            "# The zoo",
            "",
            "Made by `make zoo`: every model with redrawn weights, exported, raised, compiled and audited. `sites`:",
            "the attentions that were counted while the model runs, without those of layers behind the last feature",
            "that it returns, which nothing reads; `raised` and `fused` are of these.",
            "`difference`: the largest one to PyTorch (for the files: to ONNX Runtime on the untouched file), relative",
            "to the largest reference value. `s`: seconds. Where detr's sixth site is missing, it is the first",
            "self-attention of its decoder, which does not depend on the image and is folded into a constant. A model",
            "that returns its attention map keeps that site unfused, because no fused kernel gives the map.",
            "",
            f"{machine} TensorRT-RTX compiles for sm86.",
            "",
            "| model | route | target | sites | raised | fused | difference | s | note |",
            "|---|---|---|---|---|---|---|---|---|",
            *map(str, rows),
            "",
        ]
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


if __name__ == "__main__":
    main(sys.argv[1:])
