"""Counts of what is expensive: compiling, exporting, loading the model, hashing files."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import openvino as ov
import pytest

from vitdeploy import artifact as artifacts
from vitdeploy import onnx_export, sources
from vitdeploy.artifact import Artifact
from vitdeploy.targets.openvino import OpenVINO


@dataclass
class Counts:
    """How often each was done.

    Attributes:
        compiled: sha256 and precision of a target-ready graph -> how often OpenVINO compiled it to make or to audit an
            artifact.
        opened: how often OpenVINO compiled for a session (or its profile) on what was compiled before.
        exported: exports from PyTorch to ONNX.
        loaded: models loaded from their source.
        hashed: name of a file -> how often it was hashed.
    """

    compiled: Counter[str] = field(default_factory=Counter)
    opened: int = 0
    exported: int = 0
    loaded: int = 0
    hashed: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counts:
    """Counts that go up from now on, in this process."""
    counts = Counts()
    graphs: list[str] = []  # those that are being compiled or audited

    def wrap(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, wraps(original)(make(original)))

    def count_compile(compile_model: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if graphs:
                counts.compiled[graphs[-1]] += 1
            else:
                counts.opened += 1
            return compile_model(*arguments, **options)

        return call

    def name_graph(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: OpenVINO, bundle: Any, *arguments: Any, **options: Any) -> Any:
            graphs.append(f"{digest_of(bundle.graph)} {bundle.numbers.precision}")
            try:
                return method(target, bundle, *arguments, **options)
            finally:
                graphs.pop()

        return call

    def count(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                setattr(counts, name, getattr(counts, name) + 1)
                return function(*arguments, **options)

            return call

        return make

    def count_hash(file_digest: Callable[[Path], str]) -> Callable[[Path], str]:
        def call(path: Path) -> str:
            counts.hashed[path.name] += 1
            return file_digest(path)

        return call

    wrap(ov.Core, "compile_model", count_compile)
    wrap(OpenVINO, "compile", name_graph)
    wrap(OpenVINO, "audit", name_graph)
    wrap(onnx_export, "export", count("exported"))
    wrap(sources, "load", count("loaded"))
    wrap(artifacts, "file_digest", count_hash)
    return counts


def digest_of(file: Path) -> str:
    """sha256 of a file, not counted."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def key_of_graph(artifact: Artifact) -> str:
    """The target-ready graph of an artifact as `Counts.compiled` names it: sha256 and precision.

    One graph can serve two precisions: bfloat16 around INT8 is an option of the engine.
    """
    return f"{digest_of(artifact.file('graph.onnx'))} {artifact.manifest.target.precision}"
