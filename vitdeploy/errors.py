"""Every error a user can cause, as one tree.

VitdeployError                 what happened, and `fix`: what to do about it
├── UsageError                 an argument that no command can serve (a source, a size, an output folder)
├── RecipeError                a recipe that does not parse: unknown key, wrong type, missing file
├── SourceError                the model cannot be had: unknown name, no weights, weights that do not fit
├── DataError                  the images or labels cannot be had or do not serve
├── ExportError                PyTorch to ONNX failed, or the numbers differ
├── GraphError                 the ONNX file is damaged or not one vitdeploy can work on
├── PassError                  a pass of the compiler failed unexpectedly: a bug
├── QuantizeError              the precision cannot be reached from this graph and data
├── CompileError               the backend refused the graph
├── TargetUnavailable          the backend, or the device it needs, is not on this machine
├── RemoteError                a host cannot be reached, or what was asked of it failed there
├── ArtifactError              a folder on disk that is damaged, foreign or from a newer version
└── MeasureError               a measurement that could not be made at all (a doubtful one is not an error)

The command line prints one of these as one line and exits with 1.
"""

from __future__ import annotations


class VitdeployError(Exception):
    """What went wrong, where, and how to fix it; `str()` gives both in one line."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.fix}"


class UsageError(VitdeployError):
    """An argument that no command can serve."""


class RecipeError(VitdeployError):
    """A recipe that does not parse."""


class SourceError(VitdeployError):
    """The model or its weights cannot be had."""


class DataError(VitdeployError):
    """Images or labels cannot be had or do not serve."""


class ExportError(VitdeployError):
    """The model did not become an ONNX graph with the same numbers."""


class GraphError(VitdeployError):
    """An ONNX file that is damaged or outside of what vitdeploy can work on."""


class PassError(VitdeployError):
    """A pass of the compiler failed unexpectedly."""


class QuantizeError(VitdeployError):
    """The precision cannot be reached from this graph and this data."""


class CompileError(VitdeployError):
    """The backend refused the graph."""


class TargetUnavailable(VitdeployError):
    """The backend or its device is not on this machine."""


class RemoteError(VitdeployError):
    """A host that cannot be reached, or where what was asked of it failed."""


class ArtifactError(VitdeployError):
    """An artifact folder that is damaged, foreign, or written by a newer version."""


class MeasureError(VitdeployError):
    """A measurement that could not be made at all."""
