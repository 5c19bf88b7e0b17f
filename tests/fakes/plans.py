"""Layer plans as TensorRT writes them, in the build log and from the engine inspector, 10.x and 11."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

_TYPES = {1: "Float", 10: "Half", 3: "Int8", 2: "UInt8", 6: "Int32", 7: "Int64", 16: "BFloat16", 17: "FP8"}


def layers_of(model: Any) -> list[dict[str, Any]]:
    """One kernel for each attention core in half precision, one for each other node; Q/DQ melt into what they feed."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    types = {v.name: v.type.tensor_type.elem_type for v in values}
    types |= {i.name: i.data_type for i in inferred.graph.initializer}
    made_by = {output: node for node in inferred.graph.node for output in node.output}
    layers: list[dict[str, Any]] = []
    cores: dict[str, list[str]] = {}
    for node in inferred.graph.node:
        site, _, part = node.name.rpartition("/")
        if part in ("qk", "softmax", "pv"):
            cores.setdefault(site, []).append(node.name)
            if part != "pv":
                continue
            kind = _TYPES.get(types.get(node.input[0], 1), "Float")
            half = kind in ("Half", "BFloat16")
            name = f"_gemm_mha_v2_myl0_{len(layers)}" if half else f"__myl_MaxrSubExpSumDivMul_myl0_{len(layers)}"
            layers.append(_layer(name, "kgen", cores[site], [kind if half else "Float"] * 3))
        elif node.op_type in ("MatMul", "Gemm", "Conv"):
            types_in = [_operand(made_by.get(name), types, name) for name in node.input[:2]]
            layers.append(_layer(f"{node.name}_myl0_{len(layers)}", "gemm", [node.name], types_in))
        elif node.op_type == "Cast":
            layers.append(_layer(f"__myl_Cast_myl0_{len(layers)}", "kgen", [node.name], ["Half"]))
        elif node.op_type == "Transpose":
            layers.append(_layer(f"__myl_Tran_myl0_{len(layers)}", "kgen", [node.name], ["Half"]))
        elif node.op_type not in ("QuantizeLinear", "DequantizeLinear", "Reshape", "Constant"):
            layers.append(_layer(f"__myl_MulAdd_myl0_{len(layers)}", "kgen", [node.name], ["Half"]))
    return layers


def _operand(maker: Any, types: Mapping[str, int], name: str) -> str:
    """The type that enters a product: a dequantized operand enters as what it was quantized to."""
    if maker is not None and maker.op_type == "DequantizeLinear":
        return _TYPES.get(types.get(maker.input[0], 3), "Int8")
    return _TYPES.get(types.get(name, 1), "Float")


def _layer(name: str, kind: str, nodes: Sequence[str], types: Sequence[str]) -> dict[str, Any]:
    return {"name": name, "kind": kind, "nodes": [*nodes], "types": [*types]}


def as_text(layers: Sequence[Mapping[str, Any]], release: str, *, dynamic: bool = False) -> str:
    """The lines of the build log: 11 writes `Datatype` and strides, and puts a product's weights among `Constants`.

    Where shapes vary 10.x tells no type of what varies with them.
    """
    return "\n".join(_line(_untold(layer) if dynamic else layer, release) for layer in layers)


def _untold(layer: Mapping[str, Any]) -> dict[str, Any]:
    fixed = layer["types"][1:] if layer["kind"] == "gemm" else []  # weights do not vary
    varying = len(layer["types"]) - len(fixed)
    return {**layer, "types": ["N/A due to dynamic shapes"] * varying + fixed}


def _line(layer: Mapping[str, Any], release: str) -> str:
    newer = release.startswith("11")
    inputs, constants = _split(layer, newer=newer)
    parts = [f"Name: {layer['name']}", f"LayerType: {layer['kind']}", f"Inputs: [{_texts(inputs, newer=newer)}]"]
    parts += [f"Constants: [{_texts(constants, newer=newer)}]"] if newer else []
    metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in layer["nodes"])
    parts += [
        f"Outputs: [{_texts(['Half'], newer=newer)}]", f"TacticName: {_tactic(layer)}", "StreamId: 0",
        f"Metadata: {metadata}",
    ]  # fmt: skip
    return ", ".join(parts)


def _tactic(layer: Mapping[str, Any]) -> str:
    return f"{str(layer['name']).rpartition('_myl0_')[0]}_0xba7f36183818e6fd55d44d3b60d0f5af"


def _split(layer: Mapping[str, Any], *, newer: bool) -> tuple[list[str], list[str]]:
    weights = newer and layer["kind"] == "gemm"
    return (layer["types"][:1], layer["types"][1:]) if weights else ([*layer["types"]], [])


def _texts(types: Sequence[str], *, newer: bool) -> str:
    tail = "Strides: [64,1], StrideOrder: [1,0], Datatype: {}, Format: (Linear) Row major linear format"
    form = tail if newer else "Format/Datatype: {}"
    return ", ".join(f" {{ Name: t{n}, Dimensions: [64,64], {form.format(kind)} }}" for n, kind in enumerate(types))


def as_json(layers: Sequence[Mapping[str, Any]], release: str, *, dynamic: bool = False) -> str:
    """The inspector's JSON."""
    newer = release.startswith("11")
    found = []
    for layer in map(_untold, layers) if dynamic else layers:
        inputs, constants = _split(layer, newer=newer)
        entry: dict[str, Any] = {"Name": layer["name"], "LayerType": layer["kind"], "Inputs": _json(inputs, newer)}
        entry |= {"Constants": _json(constants, newer)} if newer else {}
        metadata = "\x1e".join(f"[ONNX Layer: {node}]" for node in layer["nodes"])
        entry |= {"Outputs": _json(["Half"], newer), "TacticName": _tactic(layer), "StreamId": 0, "Metadata": metadata}
        found.append(entry)
    return json.dumps({"Layers": found, "Bindings": ["input", "output"]})


def _json(types: Sequence[str], newer: bool) -> list[dict[str, Any]]:
    def form(kind: str) -> dict[str, Any]:
        if newer:
            return {"Datatype": kind, "Format": "(Linear) Row major linear format", "Strides": [64, 1]}
        return {"Format/Datatype": kind}

    return [{"Name": f"t{n}", "Dimensions": [64, 64], **form(kind)} for n, kind in enumerate(types)]
