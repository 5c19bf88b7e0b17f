"""Read classes or boxes in the outputs of a model, in Triton's Python backend. Written by vitdeploy; it needs numpy.

`settings.json` beside this file has the labels, the model's preprocessing and `reading`: the `post_processing` of an
artifact's manifest.json.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils
from vitdeploy_geometry import place

Array: TypeAlias = "np.ndarray[Any, Any]"
NOTHING = -1  # the class of a box that is not there


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002  all is in the settings
        """Read the settings."""
        path = Path(__file__).resolve().with_name("settings.json")
        self.settings = json.loads(path.read_text(encoding="utf-8"))
        self.reading = SimpleNamespace(**self.settings["reading"])
        self.preprocess = SimpleNamespace(**self.settings["preprocess"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Read the outputs of each request."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Return the response to one request."""

        def take(name: str) -> Array:
            array: Array = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            return array

        scores = take("SCORES").astype(np.float64)
        if self.reading.boxes is None:
            answers = [self.list_classes(one) for one in scores]
        else:
            sizes = take("IMAGE_SIZE").reshape(-1, 2)
            boxes = take("BOXES").astype(np.float64)
            answers = [self.list_boxes(*one) for one in zip(scores, boxes, sizes, strict=True)]
        tensors = [pb_utils.Tensor(name, np.stack([answer[name] for answer in answers])) for name in answers[0]]
        return pb_utils.InferenceResponse(output_tensors=tensors)

    def list_classes(self, scores: Array) -> dict[str, Array]:
        """Return the most probable classes: probability, index and label."""
        are_probabilities = scores.min() >= 0 and abs(scores.sum() - 1) <= 0.01
        shares = scores if are_probabilities else activate(scores, self.reading.activation)
        best = np.argsort(-shares, kind="stable")[: self.settings["count"]]
        return {"PROBABILITY": shares[best].astype(np.float32), **self.name_classes(best)}

    def list_boxes(self, scores: Array, boxes: Array, size: Array) -> dict[str, Array]:
        """Return the best boxes: score, class, label, and left, top, right and bottom in pixels of the upright image.

        There are always as many; what is below the threshold has the class -1.
        """
        count, reading = self.settings["count"], self.reading
        shares = activate(scores, reading.activation)
        if reading.no_object is not None:
            shares = np.delete(shares, reading.no_object, axis=1)
        if reading.candidates == "every class":
            queries, classes = np.divmod(np.arange(shares.size), shares.shape[1])
        else:
            queries, classes = np.arange(len(shares)), shares.argmax(axis=1)
        values = shares[queries, classes]
        best = np.argsort(-values, kind="stable")[:count]
        best = best[values[best] >= reading.threshold]
        if reading.boxes_layout == "4, queries":
            boxes = boxes.T
        corners = self.to_corners(boxes[queries[best]], *size)
        missing = count - len(best)
        return {
            "PROBABILITY": np.pad(values[best].astype(np.float32), (0, missing)),
            "BOX": np.pad(corners.astype(np.float32), ((0, missing), (0, 0))),
            **self.name_classes(np.pad(classes[best], (0, missing), constant_values=NOTHING)),
        }

    def to_corners(self, boxes: Array, height: int, width: int) -> Array:
        """Turn centre and size, as shares of the input, into corners in pixels of the upright image."""
        area = place(int(height), int(width), self.preprocess)
        rows, columns = self.preprocess.size
        x, y, w, h = boxes.T
        xs = [(area.left + share * columns) * width / area.width for share in (x - w / 2, x + w / 2)]
        ys = [(area.top + share * rows) * height / area.height for share in (y - h / 2, y + h / 2)]
        return np.stack([xs[0], ys[0], xs[1], ys[1]], axis=1)

    def name_classes(self, classes: Array) -> dict[str, Array]:
        """Return indices and labels of classes; a class without a label has its index as label."""
        labels = self.settings["labels"]
        names = [labels[i] if 0 <= i < len(labels) else "" if i == NOTHING else str(i) for i in classes]
        return {"CLASS": classes.astype(np.int32), "LABEL": np.array([name.encode() for name in names], np.object_)}


def activate(scores: Array, activation: str) -> Array:
    """Turn logits into probabilities, along the last axis."""
    shares: Array
    if activation == "sigmoid":
        shares = 1 / (1 + np.exp(-scores))
        return shares
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    return shares
