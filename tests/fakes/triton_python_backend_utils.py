"""What programs for Triton's Python backend import, as far as ours use it: the names and rules of Triton's own module.

As there, a tensor of TYPE_STRING is an array of objects that are bytes, and a response has tensors or an error. The
test marked `long` in tests/commands/package/test_served.py runs the same programs in Triton itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class TritonError:
    def __init__(self, message: str) -> None:
        self._message = message

    def message(self) -> str:
        return self._message


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError("Tensor takes a name and a NumPy array")
        if array.dtype == np.object_ and not all(isinstance(value, (bytes, str)) for value in array.reshape(-1)):
            raise TypeError("an array of objects holds bytes")
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._array


class InferenceRequest:
    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = list(inputs)

    def inputs(self) -> list[Tensor]:
        return self._inputs


class InferenceResponse:
    def __init__(self, output_tensors: Sequence[Tensor], error: TritonError | None = None) -> None:
        self._outputs, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._outputs

    def error(self) -> TritonError | None:
        return self._error

    def has_error(self) -> bool:
        return self._error is not None


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)
