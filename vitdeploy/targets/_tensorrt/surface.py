"""The members of TensorRT's Python bindings that vitdeploy touches, by class."""

from __future__ import annotations

from types import ModuleType

CLASSES = (
    "Builder", "BuilderFlag", "DataType", "EngineInspector", "HardwareCompatibilityLevel", "IBuilderConfig",
    "ICudaEngine", "IExecutionContext", "IHostMemory", "ILayer", "ILogger", "INetworkDefinition",
    "IOptimizationProfile", "IProfiler", "IProgressMonitor", "ITensor", "ITimingCache", "LayerInformationFormat",
    "LayerType", "MemoryPoolType", "NetworkDefinitionCreationFlag", "OnnxParser", "ParserError", "ProfilingVerbosity",
    "Runtime", "TensorIOMode",
)  # fmt: skip

Members = list[str] | dict[str, int]


def list_members(trt: ModuleType) -> dict[str, Members]:
    """Return the public members of each class that this version has; of an enum with their numbers."""
    surface: dict[str, Members] = {}
    for name in CLASSES:
        kind = getattr(trt, name, None)
        if kind is None:
            continue
        members = getattr(kind, "__members__", None)
        if members is None:
            surface[name] = [member for member in dir(kind) if not member.startswith("_")]
        else:
            surface[name] = {key: int(value) for key, value in members.items()}
    return surface
