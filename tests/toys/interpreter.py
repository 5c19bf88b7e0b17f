"""A toy target: the reference evaluator of the onnx package, operator by operator in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from vitdeploy.environment import Host
from vitdeploy.evidence import Audit, Availability
from vitdeploy.graph.dialect import Dialect, Numbers
from vitdeploy.session import Array, Feeds, SequentialSession
from vitdeploy.targets import Bundle, Compiled, Target
from vitdeploy.targets._audit import make_audit


class Interpreter(Target):
    """The reference evaluator of ONNX."""

    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    engine_module: ClassVar[str] = "onnx"
    device: str = "CPU"

    def unavailable(self) -> Availability | None:
        """It comes with vitdeploy[export]."""
        return None

    def dialect(self, host: Host | None = None) -> Dialect:
        """Primitives of an opset that it knows."""
        return Dialect(opset=20, attention="primitives")

    def compile(
        self,
        bundle: Bundle,
        workdir: Path,
        report: Callable[[str], None] | None = None,
    ) -> Compiled:
        """Take the graph as it is."""
        import onnx

        compiled = Compiled(workdir, bundle.graph.name, f"onnx {onnx.__version__}")
        return replace(compiled, audit=self.audit(bundle, compiled))

    def audit(self, bundle: Bundle, compiled: Compiled) -> Audit:
        """Nothing is fused, and everything is computed in float32."""
        reasons = {site.name: "it runs operator by operator" for site in bundle.structure.attention}
        layers = {linear.name: "fp32" for linear in bundle.structure.linears}
        return make_audit(self.name, bundle, compiled, fused={}, reasons=reasons, layers=layers, norms=0, threads=1)

    def open(self, compiled: Compiled, numbers: Numbers, threads: int | None) -> InterpreterSession:
        """Open the graph."""
        return InterpreterSession(compiled.folder / compiled.runs, f"{self.name}-{numbers.precision}")


class InterpreterSession(SequentialSession):
    """An ONNX file in the reference evaluator."""

    def __init__(self, path: Path, name: str) -> None:
        """Load the file."""
        from onnx.reference import ReferenceEvaluator

        self._evaluator = ReferenceEvaluator(str(path))
        self.name = name
        self.threads: int | None = 1
        self.effective: Mapping[str, str] = {"engine": "onnx reference"}

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Return the outputs by name."""
        return dict(zip(self._evaluator.output_names, self._evaluator.run(None, dict(feeds)), strict=True))

    def close(self) -> None:
        """There is nothing to free."""
