"""Compile a graph that comes from a file in a process of its own, so that an engine's crash is one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from vitdeploy import apart, precision, targets
from vitdeploy.artifact import TensorSpec
from vitdeploy.errors import CompileError, SourceError
from vitdeploy.evidence import Audit
from vitdeploy.recipe import Batch, SizeRange
from vitdeploy.runtime.artifact_session import make_bundle
from vitdeploy.runtime.trial import run_limited
from vitdeploy.targets import Compiled, Target

_TYPES = {"uint8": np.uint8}


class _Order(BaseModel):
    """A graph to compile: the one in `folder`, for a target with these options, in this precision."""

    model_config = ConfigDict(frozen=True)
    target: str
    options: dict[str, Any]
    precision: str
    folder: Path
    image: TensorSpec
    outputs: tuple[TensorSpec, ...]
    batch: Batch
    sizes: SizeRange | None
    excluded: Mapping[str, str]
    further: tuple[TensorSpec, ...] = ()
    variant: str = ""
    workdir: Path


class _Result(BaseModel):
    """The compiled model."""

    model_config = ConfigDict(frozen=True)
    folder: Path
    runs: str
    backend: str
    audit: Audit | None


def compile_apart(
    target: Target,
    precision_name: str,
    folder: Path,
    image: TensorSpec,
    outputs: tuple[TensorSpec, ...],
    batch: Batch,
    sizes: SizeRange | None,
    excluded: Mapping[str, str],
    further: tuple[TensorSpec, ...] = (),
    *,
    variant: str = "",
    workdir: Path | None = None,
) -> Compiled:
    """Compile and audit the graph in `folder`, and run it once, in another process. The files stay in `workdir`.

    What this machine cannot run, such as an engine for a GPU that it does not have, is compiled and audited only.

    Args:
        target: the target with its options.
        precision_name: the precision, whose numbers the graph has.
        folder: holds the graph and its sites.
        image: the input of the graph.
        outputs: the outputs of the graph.
        batch: the batch sizes.
        sizes: the image sizes; None for one.
        excluded: products that a rule keeps in float, with the rule.
        further: the inputs of the graph beside the first.
        variant: compile this variant of the bundle in `folder`; empty for its own graph.
        workdir: the folder for the compiled files; None for `folder`.

    Raises:
        CompileError: the engine refuses the graph, crashes, or goes beyond the limits of time and memory.
    """
    order = _Order(
        target=target.name, options=target.model_dump(mode="json"), precision=precision_name,
        folder=folder.absolute(), image=image, outputs=outputs, batch=batch,
        sizes=sizes, excluded=excluded, further=further, variant=variant, workdir=(workdir or folder).absolute(),
    )  # fmt: skip
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    title = type(target).title or target.name
    try:
        output = run_limited(__name__, order.model_dump_json().encode(), f"{title} on this graph", size)
    except SourceError as error:
        raise CompileError(error.message, fix=error.fix) from None
    result = _Result.model_validate_json(output)
    names = tuple(output.name for output in outputs)
    return Compiled(
        result.folder,
        result.runs,
        result.backend,
        result.audit,
        input_names=tuple(spec.name for spec in (image, *further)),
        output_names=names,
    )


def _work(task: bytes) -> bytes:
    order = _Order.model_validate_json(task)
    target = targets.kind_of(order.target).model_validate(order.options)
    numbers = precision.kind_of(order.precision).numbers
    bundle = make_bundle(
        order.folder,
        numbers,
        order.image,
        order.outputs,
        order.batch,
        order.sizes,
        order.excluded,
        order.further,
        order.variant,
    )
    compiled = target.compile(bundle, order.workdir)
    if target.cannot_run() is None:
        with target.open(compiled, numbers, None) as session:
            session.run(bundle.feed(np.zeros(bundle.input_shape, _TYPES.get(order.image.dtype, np.float32))))
    return (
        _Result(folder=compiled.folder, runs=compiled.runs, backend=compiled.backend, audit=compiled.audit)
        .model_dump_json()
        .encode()
    )


if __name__ == "__main__":
    apart.answer(_work)
