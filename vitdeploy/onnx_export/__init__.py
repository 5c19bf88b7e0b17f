"""Export PyTorch to ONNX: try one exporter after the other, and check each graph against PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.artifact import DISK_FULL, Attempt, ExportRecord, Parity
from vitdeploy.errors import ExportError
from vitdeploy.graph.exact_rules import demand_exact_constants
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.graph.parity import Example as Example
from vitdeploy.graph.parity import compare_session, explain_difference
from vitdeploy.onnx_export._adaptive_pools import adaptive_pools_as_products
from vitdeploy.onnx_export._attention_axes import attention_in_four_axes
from vitdeploy.onnx_export._branches import is_branch, record_branches, taken_branches
from vitdeploy.onnx_export._checks import checks_without_effect
from vitdeploy.onnx_export._silence import silence
from vitdeploy.onnx_export._tracing import watch_tracer
from vitdeploy.recipe import Batch
from vitdeploy.session import named_outputs

if TYPE_CHECKING:
    import torch

_DYNAMO_OPSET = 23  # emits `Attention` for every scaled_dot_product_attention
_LEGACY_OPSET = 20  # the newest that TorchScript's exporter writes; has Gelu and LayerNormalization


def export(
    module: torch.nn.Module,
    examples: Sequence[Example],
    *,
    input_name: str,
    batch: Batch,
    path: Path,
    outputs: Sequence[str] | None = None,
) -> ExportRecord:
    """Export `module` with the first exporter whose graph gives PyTorch's numbers on every example.

    The dynamo exporter comes first, because it keeps attention as one operator and module paths in node names. Where
    its optimizer breaks the graph, the graph is taken as it was before. Where Python code branches on the image, such
    as a check that raises an error, it takes the branches of the traced image. The legacy exporter is the last resort:
    its tracer makes a constant of every value that Python code computes from the image. A branch on the image then
    fails on other images, if the examples differ enough; each such place is a doubt.
    The record contains the doubts, and the failures before the exporter that succeeded.

    Args:
        module: the model in eval mode, called with one NCHW float32 tensor, or with several inputs by name.
        examples: batches of different images with PyTorch's outputs; the first one is traced. A dynamic batch needs
            several sizes.
        input_name: the name of the graph's input.
        batch: a fixed batch size, or the range of the first dimension.
        path: the ONNX file to write. Large weights go beside it.
        outputs: the outputs of the module that the graph gets, which are those of the examples; None: all.

    Raises:
        ExportError: no exporter wrote a graph with the same numbers.
    """
    examples = [Example(*example) for example in examples]
    failures: list[Attempt] = []
    doubts: tuple[str, ...] = ()
    is_written = has_branch = False
    for exporter, opset, write in _WAYS:
        if (write is _dynamo_plain and not is_written) or (write is _dynamo_branches and not has_branch):
            continue  # the exporter itself failed, not its optimizer; or not at a branch
        is_written = False
        try:
            axes = find_batch_axes(examples)
            doubts = _write(write, module, examples[0], input_name, axes, batch, path, is_whole=outputs is None)
            is_written = True
            parity = check(path, examples, input_name)
        except Exception as error:  # exporters raise all kinds of errors; try the next one, and report all failures
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise  # the next exporter would fail too, with an error that hides the reason
            is_written |= isinstance(error, _OptimizerError)
            has_branch |= is_branch(error)
            failure = Attempt(exporter=exporter, error=_one_line(error))
        else:
            if (reason := disagreement(parity)) is None:
                return ExportRecord(
                    exporter=exporter, opset=opset, fallbacks=tuple(failures), parity=parity, doubts=doubts
                )
            failure = Attempt(exporter=exporter, error="; ".join((reason, *doubts)))
        if failure not in failures:  # without the optimizer it mostly fails in the same way
            failures.append(failure)
        _remove(path)
    reasons = "; ".join(f"{f.exporter}: {f.error}" for f in failures)
    branches = "compute both sides of a branch and choose with torch.where, " if doubts else ""
    raise ExportError(
        f"no exporter could turn the model into ONNX ({reasons})",
        fix=f"Change the model so that it exports, {branches}or export it yourself and pass FILE.onnx.",
    )


_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
"""Codes that colour a terminal. PyTorch's exporter writes them into its messages."""
_LONGEST_REASON = 200


class _OptimizerError(Exception):
    """The exporter wrote a graph, and its optimizer failed on it."""


def find_batch_axes(examples: Sequence[Example]) -> dict[str, int | None]:
    """Return for each output the axis that has the size of the batch in every example; None: none has."""
    sizes = [len(example[0]) for example in examples]
    shapes = {name: [example[1][name].shape for example in examples] for name in examples[0][1]}
    return {
        name: next((axis for axis, seen in enumerate(zip(*shape, strict=False)) if list(seen) == sizes), None)
        for name, shape in shapes.items()
    }


def check(path: Path, examples: Sequence[Example], input_name: str) -> Parity:
    """Return the worst parity of each output of the graph in `path` over all examples.

    Rows that the model selects by score are compared as sets.
    """
    from vitdeploy.graph.model import load
    from vitdeploy.graph.selection import find_selected
    from vitdeploy.graph.selection_edges import find_edges

    with OnnxSession(path, lean=True) as session:
        parity = compare_session(session, examples, input_name)
        if disagreement(parity) is None or not parity.finite or examples[0].selected is not None:
            return parity
        graph = load(path)
        selected, edges = find_selected(graph), find_edges(graph, examples, input_name)
        sets = [e._replace(selected=selected, edges=edge) for e, edge in zip(examples, edges, strict=True)]
        return compare_session(session, sets, input_name)


def disagreement(parity: Parity) -> str | None:
    """Return why these numbers do not count as the reference's in float32, or None if they do."""
    reason = explain_difference(parity)
    return f"the numbers differ from PyTorch's: {reason}" if reason is not None and parity.finite else reason


_BatchAxes = Mapping[str, "int | None"]
"""The names of the outputs, and the axis of the batch in each."""
_Inputs = Mapping[str, "torch.Tensor"]
"""The inputs of the traced example by name: the image first."""
_Writer = Callable[["torch.nn.Module", _Inputs, _BatchAxes, Batch, Path], tuple[str, ...]]
"""Writes the graph of a module, and returns its doubts."""


def _write(
    write: _Writer,
    module: torch.nn.Module,
    example: Example,
    input_name: str,
    outputs: _BatchAxes,
    batch: Batch,
    path: Path,
    *,
    is_whole: bool,
) -> tuple[str, ...]:
    """Write the graph. Return the places where tracing made a constant of something that depends on the image.

    If `is_whole`, the module returns `outputs` and no others.
    """
    import torch

    class Flat(torch.nn.Module):
        """The model with a tuple of tensors as its output: mappings cannot be traced."""

        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            named = named_outputs(self.model(image))
            return tuple(named[name] for name in outputs)

    class FlatOfSeveral(Flat):
        """The same for a model with several inputs, which it takes by name."""

        def forward(self, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
            named = named_outputs(self.model(**dict(zip(inputs, values, strict=True))))
            return tuple(named[name] for name in outputs)

    inputs = {name: torch.from_numpy(value) for name, value in example.feed(input_name).items()}
    has_one_output = is_whole and list(outputs) == ["output"]
    with silence(), torch.inference_mode(False), torch.no_grad():
        model = FlatOfSeveral() if len(inputs) > 1 else module if has_one_output else Flat()
        return write(model, inputs, outputs, batch, path)


def _dynamo(
    module: torch.nn.Module,
    inputs: _Inputs,
    outputs: _BatchAxes,
    batch: Batch,
    path: Path,
    *,
    optimize: bool = True,
) -> tuple[str, ...]:
    import torch

    from vitdeploy.graph.model import Graph

    dynamic: Any = None
    if not batch.static:
        axes = {0: torch.export.Dim("batch", min=batch.min, max=batch.max)}
        dynamic = (axes,) if len(inputs) == 1 else ((axes,) * len(inputs),)  # of several, forward() takes *values
    with attention_in_four_axes(), adaptive_pools_as_products(), checks_without_effect():
        program = torch.onnx.export(
            module, tuple(inputs.values()), dynamo=True, opset_version=_DYNAMO_OPSET, input_names=list(inputs),
            output_names=list(outputs), dynamic_shapes=dynamic, verbose=False, external_data=False, optimize=False,
        )  # fmt: skip
    assert program is not None
    # The optimizer's rules live as long as the process. They keep the last graph that they saw, and with it PyTorch's
    # weights. Both are released below: the weights before optimizing, because the graph no longer lists folded ones
    # afterwards, and the weights after it.
    weights = list(program.model.graph.initializers.values())
    try:
        if optimize:
            _optimize(program)
        weights += program.model.graph.initializers.values()
        Graph(program.model).save(path)
    finally:
        for value in weights:
            value.const_value = None
    return ()  # it refuses a branch on the image


def _optimize(program: torch.onnx.ONNXProgram) -> None:
    from vitdeploy.graph.model import Graph

    demand_exact_constants()
    try:
        program.optimize()
    except Exception as error:
        raise _OptimizerError from error
    Graph(program.model).adopt_constants()


_dynamo_plain = partial(_dynamo, optimize=False)
"""The dynamo exporter without its optimizer, which breaks some graphs."""


def _dynamo_branches(
    module: torch.nn.Module, inputs: _Inputs, outputs: _BatchAxes, batch: Batch, path: Path
) -> tuple[str, ...]:
    with taken_branches(record_branches(module, *inputs.values())) as constants:
        _dynamo(module, inputs, outputs, batch, path)
    return tuple(constants)


def _legacy(module: torch.nn.Module, inputs: _Inputs, outputs: _BatchAxes, batch: Batch, path: Path) -> tuple[str, ...]:
    import torch

    varying = {**dict.fromkeys(inputs, 0), **{name: axis for name, axis in outputs.items() if axis is not None}}
    axes = None if batch.static else {name: {axis: "batch"} for name, axis in varying.items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer has no ONNX form
    try:
        with watch_tracer() as constants, adaptive_pools_as_products():
            torch.onnx.export(
                module, tuple(inputs.values()), str(path), dynamo=False, opset_version=_LEGACY_OPSET,
                input_names=list(inputs),
                output_names=list(outputs), dynamic_axes=axes, do_constant_folding=True,
            )  # fmt: skip
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return tuple(constants)


_WAYS: tuple[tuple[str, int, _Writer], ...] = (
    ("dynamo", _DYNAMO_OPSET, _dynamo),
    ("dynamo", _DYNAMO_OPSET, _dynamo_plain),
    ("dynamo", _DYNAMO_OPSET, _dynamo_branches),
    ("legacy", _LEGACY_OPSET, _legacy),
)
"""The exporters in the order in which they are tried, with the opset of each."""


def _remove(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def _one_line(error: BaseException) -> str:
    """Return the first line of the first cause: exporters wrap it in an error about their own steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in _ESCAPES.sub("", str(error)).splitlines() if line.strip()]
    name = type(error).__name__
    line = lines[0] if lines else name
    return (line if " " in line or line == name else f"{name}: {line}")[:_LONGEST_REASON]
