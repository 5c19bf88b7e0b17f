"""Run an ONNX file in ONNX Runtime: an artifact, the reference of an ONNX source, or a graph to check."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.environment import available_cores
from vitdeploy.errors import CompileError, MeasureError, TargetUnavailable
from vitdeploy.graph.onnx_provider import CPU, Provider, create_session
from vitdeploy.graph.parity import compare as compare
from vitdeploy.session import (
    Array,
    Counters,
    Feeds,
    OperatorTime,
    SequentialSession,
    check_output_names,
    closed_error,
    repeat,
)

_CHECK = "Check the model with onnx.checker, or update onnxruntime."
_PREAMBLE = re.compile(
    r"Non-zero status code returned while running |"
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed: ?|\w+\.cc:\d+ \w+ |"
    r"/onnxruntime_src/\S+ .*?(?:\) (?=[A-Z])|was false\. )"
)
_PROFILED_RUNS = 20  # counters are means over these runs
_MIN_PROFILED_S = 0.2  # a small model runs more often than that
_IMAGE_RANK = 4  # NCHW
_FATAL = 4  # ONNX Runtime's log severity: its warnings are about optimisations, and its errors are raised anyway


class OnnxSession(SequentialSession):
    """An ONNX file in ONNX Runtime. ONNX Runtime lets many threads run one session.

    Args:
        lean: leave out optimisation and weight prepacking: slower, but a third of the memory. For one-off checks.
        profile: prefix of a JSON file to which the executed kernels are written. `read_profile` reads it.
        outputs: the names of the outputs, in the graph's order; empty: the graph's names.
        provider: what computes. A session that leaves it is refused.

    Raises:
        TargetUnavailable: ONNX Runtime or the provider is not available here.
        CompileError: ONNX Runtime refuses the graph.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        lean: bool = False,
        profile: Path | None = None,
        name: str = "",
        outputs: Sequence[str] = (),
        provider: Provider = CPU,
    ) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise TargetUnavailable(
                "onnxruntime is not installed", fix="Install it: pip install 'vitdeploy[onnxruntime]'."
            ) from None
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL
        options.intra_op_num_threads = threads or available_cores()
        if lean:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.add_session_config_entry("session.disable_prepacking", "1")
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            self._session: Any = create_session(ort, str(path), options, provider)
        except TargetUnavailable:
            raise
        except Exception as error:  # noqa: BLE001  ONNX Runtime's types vary by version; all mean that it refuses the graph
            raise CompileError(
                f"ONNX Runtime {ort.__version__} refuses {path.name}: {_first_line(error)}",
                fix=_fix(error, provider),
            ) from None
        self._path, self._file, self._provider = path, path.name, provider
        self.name = name or "onnxruntime"
        effective = self._session.get_session_options()
        self.threads: int | None = effective.intra_op_num_threads if provider.is_cpu else None
        self.effective: Mapping[str, str] = {
            "engine": provider.describe_engine(ort),
            "provider": ", ".join(p.removesuffix("ExecutionProvider") for p in self._session.get_providers()),
            **provider.options,
            "threads": str(effective.intra_op_num_threads),
            "optimization": effective.graph_optimization_level.name,
        }
        graph_names = [o.name for o in self._session.get_outputs()]
        self._outputs = dict(zip(check_output_names(graph_names, outputs), graph_names, strict=True))
        """name -> name in the graph"""

    @property
    def takes_bytes(self) -> bool:
        """True if the graph takes images as uint8."""
        return bool(self._open_session().get_inputs()[0].type == "tensor(uint8)")

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return all outputs by name, or only `outputs`. Only what they need is computed then.

        Raises:
            CompileError: the feeds do not fit the graph, or the operands of an operator do not fit each other.
            UsageError: the session is closed.
        """
        names = list(self._outputs if outputs is None else outputs)
        session = self._open_session()
        try:
            results = session.run([self._outputs[name] for name in names], dict(feeds))
        except Exception as error:  # noqa: BLE001  as above
            raise self._run_error(session, feeds, error) from None
        return dict(zip(names, results, strict=True))

    def _open_session(self) -> Any:
        """Return ONNX Runtime's session. It lives until the caller drops it, even if another thread closes this one."""
        session = self._session
        if session is None:
            raise closed_error(self.name)
        return session

    def _run_error(self, session: Any, feeds: Feeds, error: Exception) -> CompileError:
        for graph_input in session.get_inputs():
            shape = feeds[graph_input.name].shape if graph_input.name in feeds else ()
            batch = graph_input.shape[0] if graph_input.shape else None
            if shape and isinstance(batch, int) and shape[0] != batch:
                return CompileError(
                    f"{self._file} takes batches of {batch}, not of {shape[0]}",
                    fix=f"Give --batch {batch}, or export it with a dynamic batch.",
                )
            sides = graph_input.shape[2:]
            if len(shape) == len(graph_input.shape) == _IMAGE_RANK and not all(isinstance(s, int) for s in sides):
                return CompileError(
                    f"{self._file} does not take images of {shape[2]}x{shape[3]}: {_first_line(error)}",
                    fix="Give the --image-size that it was exported with, or export it again for this size.",
                )
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in feeds.items())
        return CompileError(f"{self._file} does not run on {shapes}: {_first_line(error)}", fix=_CHECK)

    def profile(self, feeds: Feeds) -> Counters | None:
        """Return the time of each kernel, from a second session with the profiler on; None on a GPU.

        There ONNX Runtime's profiler measures how long it takes to launch a kernel, not how long the kernel runs.
        """
        self._open_session()
        if not self._provider.is_cpu:
            return None
        with scratch_folder("profile") as folder:
            prefix = folder / "run"
            with OnnxSession(self._path, threads=self.threads, profile=prefix, name=self.name) as session:
                session.run(feeds)
                repeat(lambda: session.run(feeds), runs=_PROFILED_RUNS, seconds=_MIN_PROFILED_S)
                return read_counters(session.read_profile())

    def end_profile(self) -> Path:
        """Stop profiling, and return the path of the JSON file."""
        return Path(self._open_session().end_profiling())

    def read_profile(self) -> list[dict[str, Any]]:
        """Stop profiling, and return the events.

        Raises:
            MeasureError: the file is not complete. ONNX Runtime does not say when it cannot write it.
        """
        file = self.end_profile()
        try:
            events: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise MeasureError(
                f"ONNX Runtime could not write its profile to {file.parent}",
                fix="Free some space there, or set TMPDIR to another folder.",
            ) from None
        return events

    def close(self) -> None:
        """Free ONNX Runtime's session."""
        self._session = None


def read_counters(events: list[dict[str, Any]]) -> Counters:
    """Return mean times over the faster half of the runs in a profile of ONNX Runtime.

    The slower half was disturbed by other things than the operators.
    """
    model_runs = sorted((e["dur"], e["ts"]) for e in events if e.get("name") == "model_run")
    spans = [(ts, ts + dur) for dur, ts in model_runs[: -(-len(model_runs) // 2)]]
    times_ms: dict[str, float] = {}
    kinds: dict[str, str] = {}
    for event in events:
        name = event.get("name", "")
        if event.get("cat") != "Node" or not name.endswith("_kernel_time"):
            continue
        if any(start <= event["ts"] < end for start, end in spans):
            name = name.removesuffix("_kernel_time")
            times_ms[name] = times_ms.get(name, 0.0) + event["dur"] / 1e3
            kinds[name] = event.get("args", {}).get("op_name", "")
    runs = len(spans)
    operators = tuple(OperatorTime(name, kinds[name], (name,), ms / runs) for name, ms in times_ms.items())
    return Counters(runs, sum(end - start for start, end in spans) / 1e3 / runs, operators)


def _first_line(error: Any) -> str:
    """Return the message of ONNX Runtime, without its error codes, file names and C++ source lines."""
    text = _PREAMBLE.sub("", " ".join(str(error).split()))
    return text[:300].rstrip(". ")


def _fix(error: Any, provider: Provider) -> str:
    if "Could not find an implementation" in str(error):
        if not provider.is_cpu:
            return f"ONNX Runtime has no kernel for this data type on {provider.place}: use --precision fp16 or fp32."
        return "ONNX Runtime has no CPU kernel for this data type: export the model in float32."
    return _CHECK
