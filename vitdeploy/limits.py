"""Limits for what is received. Each can be raised by an environment variable, for large files that you trust."""

from __future__ import annotations

import os
from dataclasses import dataclass

from vitdeploy.errors import UsageError


@dataclass(frozen=True)
class InputLimit:
    """The largest number of something, and the environment variable that sets another.

    Attributes:
        variable: its name.
        default: the limit without it.
        unit: what is counted, in the plural.
    """

    variable: str
    default: int
    unit: str

    @property
    def value(self) -> int:
        """The limit in force.

        Raises:
            UsageError: the variable is not a number above 0.
        """
        text = os.environ.get(self.variable, "")
        if not text:
            return self.default
        if not (text.isascii() and text.isdecimal() and len(text) < _MAX_DIGITS and int(text) > 0):
            raise UsageError(f"{self.variable} is {text!r}, not a number of {self.unit}", fix="Give a number above 0.")
        return int(text)

    @property
    def fix(self) -> str:
        """The advice to raise it, for an error."""
        return f"If you trust the file, raise the limit: {self.variable}={self.value * 4}."


_MAX_DIGITS = 19  # fits 64 bits

MAX_PIXELS = InputLimit("VITDEPLOY_MAX_PIXELS", 1 << 26, "pixels")
"""Of an image, before it is decoded: 8192 x 8192. Decoding and scaling take up to about 30 bytes a pixel."""

MAX_IMAGE_BYTES = InputLimit("VITDEPLOY_MAX_IMAGE_BYTES", 512 << 20, "bytes")
"""Of an image file: some decoders read it as a whole."""

MAX_DATA_BYTES = InputLimit("VITDEPLOY_MAX_DATA_BYTES", 4 << 30, "bytes")
"""Of the arrays in an `.npz` or `.npy`, once they are unpacked."""

MAX_JSON_BYTES = InputLimit("VITDEPLOY_MAX_JSON_BYTES", 1 << 30, "bytes")
"""Of `annotations.json`. The largest file of COCO 2017 has 0.45 GiB. In memory it takes about ten times as much."""

MAX_NODES = InputLimit("VITDEPLOY_MAX_NODES", 50_000, "nodes")
"""Of an ONNX graph. The largest known export of a vision model has about 20,000; 50,000 take two minutes to fold."""

MAX_TRIAL_SECONDS = InputLimit("VITDEPLOY_MAX_TRIAL_SECONDS", 900, "seconds")
"""Of compiling and running a model that comes from a file, in a process of its own."""

MAX_TRIAL_BYTES = InputLimit("VITDEPLOY_MAX_TRIAL_BYTES", 16 << 30, "bytes")
"""Of the memory of that process, beyond the size of the model's file eight times over."""
