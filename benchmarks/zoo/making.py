"""Make rows of one model in a process of its own: build it once, export it in each form, compile it for each target."""

from __future__ import annotations

import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace as changed
from functools import cached_property
from io import StringIO
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.images import save_crops
from benchmarks.zoo import models
from benchmarks.zoo.counting import count_attentions
from benchmarks.zoo.rows import ROUTES, Case, Row
from vitdeploy import recipe as recipes
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import VitdeployError
from vitdeploy.evidence import Audit, Unfused
from vitdeploy.frozen import replace
from vitdeploy.pipeline.graph_cache import GraphCache
from vitdeploy.pipeline.summary import ExportResult
from vitdeploy.progress import Silent
from vitdeploy.recipe import Recipe

_REASON = 240  # characters
_CALIBRATION_IMAGES = 8


def make_rows(cases: list[Case], folder: Path, answers: Connection) -> None:
    """Make the rows of one model, and send each as soon as it is finished. The work of a child process.

    Args:
        cases: all of one model.
        folder: holds the exported graphs, so that a second child continues where the first one crashed.
        answers: takes the rows.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    maker = Maker(cases[0].model, folder)
    for case in cases:
        answers.send(maker.make(case))


class Maker:
    """A model of the zoo, and what its rows share: the module, its ONNX files, its exported graph, the images."""

    def __init__(self, name: str, folder: Path) -> None:
        """Keep what rows share in `folder`."""
        self.name, self.folder = name, folder
        self.size = models.MODELS[name].size
        self._cache = GraphCache(folder / "graphs")
        self._failures: dict[int, str] = {}

    @cached_property
    def module(self) -> torch.nn.Module:
        """The model."""
        module: torch.nn.Module = models.build(self.name)
        return module

    @cached_property
    def attentions(self) -> int:
        """The number of attentions, by the zoo's own count."""
        return count_attentions(self.module, self.size) - models.MODELS[self.name].other_softmaxes

    def make(self, case: Case) -> Row:
        """Export, compile and audit; return what came out, or the reason why nothing did."""
        started = time.monotonic()
        row = Row(*case, seconds=0)
        try:
            row = changed(row, attentions=self.attentions)
            recipe = self._compose(case)
            out = self.folder / "-".join(case[1:]).replace(" ", "")
            result = export(recipe, out, Silent(), force=True, cache=self._cache)
            row = _read_row(row, result, inspect(result.artifact))
        except VitdeployError as error:
            row = changed(row, error=error.message[:_REASON])
        except ExporterError as error:
            row = changed(row, error=str(error))
        except Exception as error:  # noqa: BLE001  any failure is a row of the table
            row = changed(row, error=f"unexpected {type(error).__name__}: {_first_line(error)}")
        return changed(row, seconds=round(time.monotonic() - started, 1))

    def _compose(self, case: Case) -> Recipe:
        opset = ROUTES[case.route]
        spec = f"python:{models.__name__}:build" if opset is None else str(self.save(opset))
        size = "x".join(str(side) for side in self.size)
        calibration = self._save_images() if case.precision == "int8" else None
        recipe = recipes.compose(
            spec, target=case.target, precision=case.precision, image_size=size, calibration=calibration
        )
        if opset is not None:
            return recipe
        return replace(recipe, model=replace(recipe.model, kwargs={"name": self.name}))

    def save(self, opset: int) -> Path:
        """Return the file of the legacy exporter; raise the same error again if it failed before."""
        path = self.folder / f"opset{opset}.onnx"
        if opset in self._failures:
            raise ExporterError(self._failures[opset])
        if not path.exists():
            try:
                save_legacy(self.module, self.size, opset, path)
            except Exception as error:  # noqa: BLE001  its failure is a row of the table
                self._failures[opset] = f"the legacy exporter cannot: {_first_line(error)}"
                path.unlink(missing_ok=True)
                raise ExporterError(self._failures[opset]) from None
        return path

    def _save_images(self) -> str:
        folder = self.folder / "images"
        return str(folder) if folder.exists() else save_crops(folder, count=_CALIBRATION_IMAGES)


class ExporterError(Exception):
    """The legacy exporter cannot write the file."""


def save_legacy(model: torch.nn.Module, size: tuple[int, int], opset: int, path: Path) -> None:
    """Write the model with the legacy exporter, with a batch that varies."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        # Where it fails, it prints the whole graph.
        with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model, (torch.zeros(1, 3, *size),), str(path), dynamo=False, opset_version=opset,
                input_names=["image"], dynamic_axes={"image": {0: "batch"}},
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _read_row(row: Row, result: ExportResult, audit: Audit) -> Row:
    refused = {r.site: r.reason for p in result.summary.passes for r in p.refused if p.name == "raise-attention"}
    norms = {r.site: r.reason for p in result.summary.passes for r in p.refused if p.name == "raise-layer-norm"}
    # Of the compiled model where it runs here, else of the graph that was compiled.
    compared = result.summary.parity
    parity = compared if compared.batches else result.summary.graph_parity
    share = audit.quantized
    return changed(
        row,
        sites=audit.attention.sites,
        raised=audit.attention.sites - len(refused),
        fused=audit.attention.fused,
        unfused=count_reasons(audit.attention.unfused, refused),
        difference=parity.max_abs / parity.reference_max if parity is not None else float("nan"),
        norms=audit.layernorm.sites + len(norms),
        norms_fused=audit.layernorm.fused,
        unfused_norms={**count_reasons(audit.layernorm.unfused, {}), **Counter(norms.values())},
        weights_pct=None if share is None or row.precision != "int8" else round(share.weights_pct, 1),
        outside={} if share is None or row.precision != "int8" else dict(share.outside),
        exporter=result.summary.exporter,
    )


_KERNELS = re.compile(r"; runs as .*|(?<=runs as )(\d+ kernels?)[:,].*| \(\S+\), (?:behind|followed by) .*")
"""The end of a reason that names kernels, which are others in each model."""


def count_reasons(unfused: tuple[Unfused, ...], refused: Mapping[str, str]) -> dict[str, int]:
    """Count the sites of each reason, without the kernels, which `vitdeploy inspect` shows."""
    return dict(Counter(refused.get(u.site) or re.sub(_KERNELS, r"\1", u.reason)[:_REASON] for u in unfused))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:_REASON]
