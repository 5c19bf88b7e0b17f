"""The ways to run the models of `side_by_side.py`: stock engines, tools of others, and vitdeploy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from onnxruntime.transformers.optimizer import optimize_model

from benchmarks.foreign import StockOpenVINO, count_attention_in_onnxruntime
from benchmarks.quantization import PEERS
from benchmarks.side_by_side_models import Case
from benchmarks.venvs import ToolError, run_in_venv
from vitdeploy import recipe as recipes
from vitdeploy.artifact import load
from vitdeploy.commands.export import export
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.errors import VitdeployError
from vitdeploy.graph.onnx_session import OnnxSession
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import open_session
from vitdeploy.runtime.torch_session import TorchSession
from vitdeploy.session import Session

_OPTIMUM = Path(__file__).with_name("optimum_peers.py")
_FAILED = ".failed"
_WITHOUT_BF16 = "fp32,int8,int8-dynamic,int8-weights"

Maker = Callable[[Case, Path], None]
"""Writes the model to a path; raises ToolError or VitdeployError."""


def _any(_: Case) -> bool:
    return True


def _is_vit(case: Case) -> bool:
    return case.is_vit


def _is_classifier(case: Case) -> bool:
    return case.is_classifier


def _merges(case: Case) -> bool:
    return bool(case.merging)


@dataclass(frozen=True)
class Contender:
    """A way to run a model.

    Attributes:
        title: its name in the table.
        numbers: what the model was made to compute in.
        path: the model's file or folder, in the folder of a case.
        engine: what opens it.
        maker: what makes it; None where `Case.prepare` does.
        takes: the models that it is for.
    """

    title: str
    numbers: Literal["fp32", "int8", "auto"]
    path: str
    engine: Literal["torch", "torch.compile", "onnxruntime", "openvino", "openvino at f32", "vitdeploy"]
    maker: Maker | None = None
    takes: Callable[[Case], bool] = _any

    def make(self, case: Case) -> None:
        """Write the model, or a note with the tool's error, unless there is one of the two."""
        path = case.folder / self.path
        if self.maker is None or path.exists() or self._error_file(case).exists():
            return
        try:
            self.maker(case, path)
        except (ToolError, VitdeployError) as error:
            self._error_file(case).write_text(str(error), encoding="utf-8")

    def read_error(self, case: Case) -> str:
        """Return why there is no model; empty if there is one."""
        file = self._error_file(case)
        if file.exists():
            return file.read_text(encoding="utf-8")
        return "" if (case.folder / self.path).exists() else "not made"

    def _error_file(self, case: Case) -> Path:
        path = case.folder / self.path
        return path.with_name(path.name + _FAILED)

    def open(self, case: Case, threads: int) -> Session:
        """Open the model."""
        path = case.folder / self.path
        if self.engine == "torch":
            return TorchSession(case.module, threads=threads, name=self.title)
        if self.engine == "torch.compile":
            compiled: Any = torch.compile(case.module)
            return TorchSession(compiled, threads=threads, name=self.title)
        if self.engine == "onnxruntime":
            return OnnxSession(path, threads=threads, name=self.title)
        if self.engine == "vitdeploy":
            session = open_session(load(path), threads)
            session.name = self.title
            return session
        return StockOpenVINO(path, threads, self.title, float32=self.engine == "openvino at f32")

    def describe_numbers(self, case: Case, session: Session) -> str:
        """Return what it computes in, with the type that OpenVINO chose for what is not quantized."""
        if self.engine == "vitdeploy":
            manifest = load(case.folder / self.path).manifest
            return next((trial.label for trial in manifest.trials if trial.kept), manifest.target.precision)
        if not isinstance(session, StockOpenVINO):
            return self.numbers
        rest = {"f32": "fp32", "bf16": "bf16"}.get(session.effective["inference_precision"], "other")
        return rest if self.numbers == "fp32" else f"{self.numbers} + {rest}"

    def describe_attention(self, case: Case, session: Session) -> str:
        """Return how many attention sites run as one kernel, where the engine shows it."""
        path = case.folder / self.path
        if self.engine == "vitdeploy":
            attention = inspect(load(path)).attention
            return f"{attention.fused}/{attention.sites}"
        if isinstance(session, StockOpenVINO):
            return str(session.count_fused_attention())
        if self.engine == "onnxruntime":
            return str(count_attention_in_onnxruntime(path, case.feeds, session.threads or 1))
        return ""


def _run_peer(case: Case, path: Path) -> None:
    run_in_venv("peers", PEERS, path.parent, path.stem)


def _run_optimum_intel(case: Case, path: Path) -> None:
    run_in_venv("optimum-intel", _OPTIMUM, case.folder, path.stem)


def _run_optimum_onnx(case: Case, path: Path) -> None:
    run_in_venv("optimum-onnx", _OPTIMUM, case.folder, path.stem)


def _run_ort_optimizer(case: Case, path: Path) -> None:
    """Optimize in this environment, because the optimizer imports torch."""
    try:
        config = case.module.config
        model = optimize_model(
            str(path.with_name("model.onnx")), model_type="vit", num_heads=config.num_attention_heads,
            hidden_size=config.hidden_size,
        )  # fmt: skip
        model.save_model_to_file(str(path))
    except Exception as error:
        raise ToolError(f"{type(error).__name__}: {error}".splitlines()[-1]) from error


def _export(target: str, case: Case, path: Path, *, precision: str = "auto", merge: bool = False) -> None:
    """Run `vitdeploy export` with the images that the others calibrate on."""
    recipe = recipes.compose(
        case.subject.spec, target=target, precision=precision, calibration=case.subject.calibration,
        weights=None if case.trained else "random", merge_tokens=case.merging if merge else None,
    )  # fmt: skip
    export(recipe, path, Silent())


AT_F32 = ", at f32"
"""Ends the title of a way that computes in float32 what is not quantized."""
OURS = "**vitdeploy** "
"""Begins the titles of vitdeploy's ways."""
MERGED = f"{OURS}openvino auto, tokens merged"
PICKS = (f"{OURS}onnxruntime auto", f"{OURS}openvino auto")
PICKS_AT_F32 = (f"{OURS}onnxruntime auto", f"{OURS}openvino auto{AT_F32}")
CONTENDERS = (
    Contender("PyTorch eager", "fp32", "hf", "torch"),
    Contender("torch.compile", "fp32", "hf", "torch.compile"),
    Contender("ONNX Runtime, opset 20", "fp32", "opset20/model.onnx", "onnxruntime"),
    Contender("ONNX Runtime, opset 23", "fp32", "opset23/model.onnx", "onnxruntime"),
    Contender(
        "ORT transformers optimizer", "fp32", "opset20/ort-transformers.onnx", "onnxruntime", _run_ort_optimizer,
        _is_vit,
    ),
    Contender("optimum-onnx export", "fp32", "onnx-fp32.onnx", "onnxruntime", _run_optimum_onnx, _is_classifier),
    Contender(
        "optimum-onnx ORTOptimizer O3", "fp32", "onnx-optimized.onnx", "onnxruntime", _run_optimum_onnx, _is_vit
    ),
    Contender("OpenVINO, opset 20, at f32", "fp32", "opset20/model.onnx", "openvino at f32"),
    Contender("OpenVINO, opset 23, at f32", "fp32", "opset23/model.onnx", "openvino at f32"),
    Contender("OpenVINO, opset 23", "fp32", "opset23/model.onnx", "openvino"),
    Contender(
        "optimum-intel export, at f32", "fp32", "intel-fp32.xml", "openvino at f32", _run_optimum_intel, _is_classifier
    ),
    Contender("optimum-intel export", "fp32", "intel-fp32.xml", "openvino", _run_optimum_intel, _is_classifier),
    Contender("optimum-intel OVQuantizer", "int8", "intel-int8.xml", "openvino", _run_optimum_intel, _is_classifier),
    Contender(
        "optimum-intel OVQuantizer, at f32", "int8", "intel-int8.xml", "openvino at f32", _run_optimum_intel,
        _is_classifier,
    ),
    Contender("NNCF, nothing set", "int8", "opset23/nncf-plain.xml", "openvino", _run_peer),
    Contender("NNCF, nothing set, at f32", "int8", "opset23/nncf-plain.xml", "openvino at f32", _run_peer),
    Contender("NNCF, model_type TRANSFORMER", "int8", "opset23/nncf.xml", "openvino", _run_peer),
    Contender("NNCF, model_type TRANSFORMER, at f32", "int8", "opset23/nncf.xml", "openvino at f32", _run_peer),
    Contender("ORT quantize_dynamic", "int8", "opset20/ort-dynamic.onnx", "onnxruntime", _run_peer),
    Contender("ORT quantize_static", "int8", "opset20/ort-static.onnx", "onnxruntime", _run_peer),
    Contender(
        "optimum-onnx ORTQuantizer dynamic", "int8", "onnx-dynamic.onnx", "onnxruntime", _run_optimum_onnx,
        _is_classifier,
    ),
    Contender(
        "optimum-onnx ORTQuantizer static", "int8", "onnx-static.onnx", "onnxruntime", _run_optimum_onnx, _is_classifier
    ),
    Contender(PICKS[0], "auto", "onnxruntime", "vitdeploy", partial(_export, "onnxruntime")),
    Contender(PICKS[1], "auto", "openvino", "vitdeploy", partial(_export, "openvino")),
    Contender(
        PICKS_AT_F32[1], "auto", "openvino-f32", "vitdeploy", partial(_export, "openvino", precision=_WITHOUT_BF16)
    ),
    Contender(MERGED, "auto", "openvino-merged", "vitdeploy", partial(_export, "openvino", merge=True), _merges),
)  # fmt: skip
