"""Every error a user can cause, as one tree.

VitdeployError                 what happened, and `fix`: what to do about it
├── UsageError                 an argument that cannot be used (a source, a size, an output folder)
├── RecipeError                a recipe that does not parse: unknown key, wrong type, missing file
├── SourceError                the model cannot be loaded: unknown name, no weights, weights that do not fit
├── DataError                  the images or labels are missing, damaged, or do not fit the model
├── ExportError                PyTorch to ONNX failed, or the numbers differ
├── GraphError                 the ONNX file is damaged, or vitdeploy cannot work on it
├── PassError                  a pass of the compiler failed unexpectedly: a bug
├── QuantizeError              the precision is not possible for this graph and this data
├── CompileError               the backend refused the graph
├── TargetUnavailable          the backend, or the device it needs, is not on this machine
├── RemoteError                a host cannot be reached, or a job failed there
│   ├── HostUnreachable        not now; a later try may work
│   └── NoNodeLeft             no node of a cluster has what the work needs
├── ArtifactError              a folder on disk is damaged, foreign, or from a newer version
└── MeasureError               a measurement was impossible (a doubtful one is not an error)

The command line prints one of these as one line and exits with 1.
"""

from __future__ import annotations


class VitdeployError(Exception):
    """The base of all: `message` says what went wrong and where, `fix` what to do; `str()` gives both in one line."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.fix}"


class UsageError(VitdeployError):
    """An argument that cannot be used."""


class RecipeError(VitdeployError):
    """A recipe that does not parse."""


class SourceError(VitdeployError):
    """The model or its weights cannot be loaded."""


class DataError(VitdeployError):
    """Images or labels are missing, damaged, or do not fit the model."""


class ExportError(VitdeployError):
    """The model did not become an ONNX graph with the same numbers."""


class GraphError(VitdeployError):
    """An ONNX file that is damaged, or that vitdeploy cannot work on."""


class PassError(VitdeployError):
    """A pass of the compiler failed unexpectedly."""


class QuantizeError(VitdeployError):
    """The precision is not possible for this graph and this data."""


class CompileError(VitdeployError):
    """The backend refused the graph."""


class TargetUnavailable(VitdeployError):
    """The backend or its device is not on this machine."""


class RemoteError(VitdeployError):
    """A host cannot be reached, or a job failed there."""


class HostUnreachable(RemoteError):
    """A host cannot be reached now. A later try may work."""


class NoNodeLeft(RemoteError):
    """No node of a cluster has the CPUs and the memory that the work needs."""


class ArtifactError(VitdeployError):
    """An artifact folder that is damaged, foreign, or written by a newer version."""


class MeasureError(VitdeployError):
    """A measurement that was impossible."""
