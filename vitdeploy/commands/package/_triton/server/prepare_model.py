"""Turn encoded images into the input of a model, in Triton's Python backend. Written by vitdeploy.

It needs numpy and Pillow. `settings.json` beside this file has the model's preprocessing.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from vitdeploy_images import open_image, prepare


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args: dict[str, str]) -> None:  # noqa: ARG002  all is in the settings
        """Read the settings."""
        path = Path(__file__).resolve().with_name("settings.json")
        self.settings = json.loads(path.read_text(encoding="utf-8"))
        self.preprocess = SimpleNamespace(**self.settings["preprocess"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """Prepare the images of each request. One that cannot be decoded or prepared fails its own request only."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Return the response to one request: the inputs, and for boxes height and width of each upright image."""
        contents = pb_utils.get_input_tensor_by_name(request, "IMAGE").as_numpy().reshape(-1)
        form, step = self.settings["form"], "decoded"
        try:
            images = [open_image(content, self.preprocess) for content in contents]
            step = "prepared"
            planes = np.stack([prepare(image, self.preprocess, form) for image in images])
        except Exception as error:  # noqa: BLE001  Pillow's types vary by format
            return pb_utils.InferenceResponse(
                output_tensors=[], error=pb_utils.TritonError(f"an image cannot be {step}: {error}")
            )
        sizes = np.array([[image.height, image.width] for image in images], np.int32)
        tensors = [pb_utils.Tensor(*pair) for pair in zip(self.settings["outputs"], (planes, sizes), strict=False)]
        return pb_utils.InferenceResponse(output_tensors=tensors)
