"""The smallest inputs that every command takes: a ViT of one block as ONNX, labelled images, and a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from onnx import ModelProto, TensorProto, helper, numpy_helper

SIZE, PATCH, WIDTH, HEADS, CLASSES = 16, 8, 16, 2, 4
_TOKENS = (SIZE // PATCH) ** 2
IMAGES = 24


def make_model(seed: int = 0) -> ModelProto:
    """Return a ViT of one block. Input `image` (1, 3, 16, 16), output `logits` (1, 4)."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    nodes: list[Any] = []

    def weight(name: str, *shape: int, scale: float = 0.3) -> str:
        tensors[name] = (scale * rng.standard_normal(shape)).astype(np.float32)
        return name

    def shape(name: str, *sizes: int) -> str:
        tensors[name] = np.array(sizes, dtype=np.int64)
        return name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=f"n_{output}", **attributes))
        return output

    def linear(x: str, name: str, inputs: int, outputs: int) -> str:
        product = node("MatMul", [x, weight(f"{name}.w", inputs, outputs)], f"{name}.product")
        return node("Add", [product, weight(f"{name}.b", outputs)], name)

    def norm(x: str, name: str) -> str:
        tensors[f"{name}.w"] = np.ones(WIDTH, np.float32) + 0.1 * rng.standard_normal(WIDTH).astype(np.float32)
        return node("LayerNormalization", [x, f"{name}.w", weight(f"{name}.b", WIDTH)], name, epsilon=1e-6)

    def heads(x: str, order: list[int], name: str) -> str:
        split = node("Reshape", [x, shape(f"{name}.shape", 0, _TOKENS, HEADS, WIDTH // HEADS)], f"{name}.split")
        return node("Transpose", [split], name, perm=order)

    patches = node(
        "Conv", ["image", weight("patch.w", WIDTH, 3, PATCH, PATCH, scale=0.1)], "patch", strides=[PATCH, PATCH]
    )
    flat = node("Reshape", [patches, shape("flat.shape", 0, WIDTH, _TOKENS)], "flat")
    tokens = node("Transpose", [flat], "tokens", perm=[0, 2, 1])
    x = node("Add", [tokens, weight("position", 1, _TOKENS, WIDTH)], "embedded")
    y = norm(x, "norm1")
    q = heads(linear(y, "q", WIDTH, WIDTH), [0, 2, 1, 3], "qh")
    k = heads(linear(y, "k", WIDTH, WIDTH), [0, 2, 3, 1], "kh")
    v = heads(linear(y, "v", WIDTH, WIDTH), [0, 2, 1, 3], "vh")
    tensors["scale"] = np.array((WIDTH // HEADS) ** -0.5, dtype=np.float32)
    scores = node("Mul", [node("MatMul", [q, k], "scores"), "scale"], "scaled")
    mixed = node("MatMul", [node("Softmax", [scores], "weights", axis=-1), v], "mixed")
    back = node("Transpose", [mixed], "back", perm=[0, 2, 1, 3])
    joined = node("Reshape", [back, shape("joined.shape", 0, _TOKENS, WIDTH)], "joined")
    x = node("Add", [x, linear(joined, "proj", WIDTH, WIDTH)], "attended")
    hidden = node("Gelu", [linear(norm(x, "norm2"), "fc1", WIDTH, 2 * WIDTH)], "hidden")
    x = node("Add", [x, linear(hidden, "fc2", 2 * WIDTH, WIDTH)], "block")
    tensors["axes"] = np.array([1], dtype=np.int64)
    pooled = node("ReduceMean", [norm(x, "norm"), "axes"], "pooled", keepdims=0)
    node("Gemm", [pooled, weight("head.w", WIDTH, CLASSES, scale=1.0), weight("head.b", CLASSES)], "logits")
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def _classify(images: Any) -> Any:
    """Return the model's own classes, so that it is right."""
    import onnxruntime as ort

    from vitdeploy.sources import _image

    preprocess = _image.default_preprocess((SIZE, SIZE), 3)
    mean, std = np.array(preprocess.mean, np.float32), np.array(preprocess.std, np.float32)
    session = ort.InferenceSession(make_model().SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = ((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2)
    return np.array([int(session.run(None, {"image": image[None]})[0].argmax()) for image in inputs])


def write_inputs(folder: Path) -> None:
    """Write `tiny.onnx`, `images.npz` (24 images of 4 classes) and `recipe.yaml`, whose limits the model keeps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.onnx").write_bytes(make_model().SerializeToString())
    images = np.random.default_rng(1).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=_classify(images))
    recipe = {
        "model": {"spec": "tiny.onnx"},
        "task": {"kind": "classification"},
        "data": {"evaluation": "images.npz"},
        "target": {"kind": "onnxruntime"},
        "bench": {"seconds": 0.1, "threads": 1},
        "gate": {"max_drop_pp": 50, "min_fused_pct": 100},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
