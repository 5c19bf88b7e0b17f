"""Small models and graphs for tests. Weights are redrawn: freshly initialised models hide broken attention."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from vitdeploy import passes
from vitdeploy.artifact import PassRecord
from vitdeploy.graph.model import Graph
from vitdeploy.graph.onnx_session import compare
from vitdeploy.graph.recognize import recognize
from vitdeploy.graph.structure import Structure
from vitdeploy.onnx_export import disagreement
from vitdeploy.passes import Pass, order
from vitdeploy.session import Array

HEADS, SIZE, WIDTH, TOKENS = 2, 16, 32, 17
"""Of the tiny ViT, and of the hand-written sites."""


def redrawn(module: nn.Module, seed: int = 0) -> nn.Module:
    """Matrices with a spread of 0.1, biases of order 1, norm weights around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.1 * drawn if parameter.ndim > 1 else 0.5 * drawn + ("norm" in name))
    return module.eval().requires_grad_(False)


def tiny_vit() -> nn.Module:
    """Two blocks of a DeiT at 32 x 32."""
    from timm.models.vision_transformer import VisionTransformer

    return redrawn(
        VisionTransformer(img_size=32, patch_size=8, embed_dim=WIDTH, depth=2, num_heads=HEADS, num_classes=10)
    )


class Site(nn.Module):
    """One attention around `core`, which takes q, k, v (batch, heads, tokens, size) and the input."""

    def __init__(self, core: Callable[..., Any], shape: tuple[int, ...] = (-1, TOKENS, HEADS, SIZE)) -> None:
        super().__init__()
        self.q, self.k, self.v, self.proj = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.core, self.shape = core, shape

    def forward(self, x: torch.Tensor) -> Any:
        """Tokens (batch, tokens, channels) in and out; with the attention map if `core` returns it."""
        q, k, v = (linear(x).reshape(self.shape).transpose(1, -2) for linear in (self.q, self.k, self.v))
        result = self.core(q, k, v, x)
        o, *rest = result if isinstance(result, tuple) else (result,)
        o = self.proj(o.transpose(1, -2).reshape(x.shape))
        return (o, *rest) if rest else o


def tokens(batch: int = 1, seed: int = 0) -> Array:
    """Input of a `Site`."""
    return np.random.default_rng(seed).standard_normal((batch, TOKENS, WIDTH)).astype(np.float32)


def images(batch: int = 1, seed: int = 0) -> Array:
    """Input of the tiny ViT."""
    return np.random.default_rng(seed).standard_normal((batch, 3, 32, 32)).astype(np.float32)


def expected(module: nn.Module, x: Array) -> dict[str, Array]:
    """PyTorch's outputs, by the names that `legacy` and `dynamo` give them."""
    with torch.inference_mode():
        result = module(torch.from_numpy(x))
    results = result if isinstance(result, tuple) else (result,)
    return {f"output_{i}": value.numpy() for i, value in enumerate(results)}


def legacy(module: nn.Module, x: Array, *, opset: int = 17, dynamic: bool = False) -> bytes:
    """The model as TorchScript's exporter writes it."""
    buffer = io.BytesIO()
    names = list(expected(module, x))
    axes = {name: {0: "batch"} for name in ("input", *names)} if dynamic else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.from_numpy(x),), buffer, dynamo=False, opset_version=opset, input_names=["input"],
            output_names=names, dynamic_axes=axes,
        )  # fmt: skip
    return buffer.getvalue()


def dynamo(module: nn.Module, x: Array, *, opset: int = 23, dynamic: bool = False) -> bytes:
    """The model as the torch.export based exporter writes it, with its metadata."""
    shapes = ({0: torch.export.Dim("batch", min=1, max=4)},) if dynamic else None
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module, (torch.from_numpy(x),), dynamo=True, opset_version=opset, input_names=["input"],
            output_names=list(expected(module, x)), dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def parsed(model: bytes | str, **constants: Array) -> Graph:
    """A graph from bytes, or from ONNX's text form with `constants` as its initializers."""
    if isinstance(model, bytes):
        return Graph(ir.from_proto(onnx.load_from_string(model)))
    proto = onnx.parser.parse_model(model)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
    for number, node in enumerate(proto.graph.node):
        node.name = f"{node.op_type}.{number}"
    for output in proto.graph.output:  # the text form cannot leave the shape open
        output.type.tensor_type.ClearField("shape")
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def raised(model: bytes | str, **constants: Array) -> tuple[Graph, Structure, Mapping[str, str]]:
    """The graph after all raising passes, what it is made of, and what stayed unraised: site -> reason."""
    graph = parsed(model, **constants)
    refused = refusals(passes.run(order.raising(), graph), "raise-attention")
    return graph, recognize(graph, refused), refused


def refusals(records: Iterable[PassRecord], name: str) -> dict[str, str]:
    """What the pass `name` refused."""
    return {r.site: r.reason for record in records for r in record.refused if record.name == name}


def apply(rewrite: Pass, graph: Graph) -> passes.PassResult:
    """Apply a pass to a graph whose shapes are known, and check that every node name in it stays unique.

    A value with a shape has a type too: else the shape cannot be stored, and onnx_ir says so on stderr.
    """
    graph.infer_shapes()
    result = rewrite.apply(graph)
    names = [node.name for node in graph.nodes]
    assert len(set(names)) == len(names)
    values = [value for node in graph.nodes for value in node.outputs]
    assert not [value.name for value in values if value.shape is not None and value.type is None]
    return result


def run(graph: Graph, x: Array, **more: Array) -> dict[str, Array]:
    """The graph's outputs by name, in ONNX Runtime without optimisation; `x` feeds the first input."""
    model = ir.to_proto(graph.model)
    onnx.checker.check_model(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {model.graph.input[0].name: x, **more})
    return dict(zip((o.name for o in model.graph.output), outputs, strict=True))


def differs(graph: Graph, x: Array, reference: Mapping[str, Array]) -> str | None:
    """Why the graph does not give the reference's numbers, or None: the rule that export itself goes by."""
    return disagreement(compare(reference, run(graph, x), batch=len(x)))


def types(graph: Graph) -> list[str]:
    """The operators, in order."""
    return [node.op_type for node in graph.nodes]
