"""Compile, audit and open for the fake TensorRT as vitdeploy does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vitdeploy import targets
from vitdeploy.evidence import Audit
from vitdeploy.precision import kind_of
from vitdeploy.recipe import TargetSpec
from vitdeploy.session import Session
from vitdeploy.targets import Bundle, Compiled

Given = Callable[..., Bundle]
Device = Callable[..., Any]


def target(**options: Any) -> targets.Target:
    return targets.find(TargetSpec(kind="tensorrt", **options))


def compiled(bundle: Bundle, folder: Path, **options: Any) -> Compiled:
    folder.mkdir(exist_ok=True)
    return target(**options).compile(bundle, folder)


def audited(bundle: Bundle, made: Compiled) -> Audit:
    return target().audit(bundle, made)


def opened(made: Compiled, precision: str = "fp16") -> Session:
    return target().open(made, kind_of(precision).numbers, None)
