"""The models of `side_by_side.py`, and the ways to run them: stock engines, tools of others, and vitdeploy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnxruntime.transformers.optimizer import optimize_model

from benchmarks import as_transformers
from benchmarks.fashion_mnist import data as fashion
from benchmarks.fashion_mnist import hostile
from benchmarks.fashion_mnist.model import MEAN, STD, FashionVit
from benchmarks.foreign import StockOpenVINO, count_attention_in_onnxruntime
from benchmarks.images import make_input, save_made_up
from benchmarks.quantization import CALIBRATION_IMAGES, PEERS, Subject
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
from vitdeploy.session import Array, Feeds, Session

INPUT = "pixel_values"
_OPTIMUM = Path(__file__).with_name("optimum_peers.py")
_FAILED = ".failed"
_SPEED_IMAGES = 32
"""Calibration images where only speed is measured: their content changes scales, not time."""


@dataclass(frozen=True)
class Case:
    """A model and its folder, which holds the model as transformers saves it (`hf`), images, and what is made of it."""

    title: str
    folder: Path
    build: Callable[[Path], None]
    trained: bool

    @cached_property
    def subject(self) -> Subject:
        """The model as vitdeploy takes it, with its images."""
        calibration, test = (str(self.folder / f"{name}.npz") for name in ("calibration", "test"))
        return Subject(self.title, f"hf:{self.folder / 'hf'}", calibration, test)

    @property
    def module(self) -> Any:
        """PyTorch's module."""
        return self.subject.module

    @property
    def sites(self) -> int:
        """The number of its attentions."""
        return int(self.module.config.num_hidden_layers)

    @cached_property
    def feeds(self) -> Feeds:
        """The one image that is used for timing."""
        return {INPUT: np.load(self.folder / "images.npz")["calibration"][:1]}

    def prepare(self) -> None:
        """Save the model, its images, and the graphs that torch exports, unless that was done before."""
        if (self.folder / "images.npz").exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self.build(self.folder / "hf")
        calibration = self._calibration()
        for opset in (20, 23):  # torch's default, and the first one that has an operator for attention
            path = self.folder / f"opset{opset}" / "model.onnx"
            path.parent.mkdir(exist_ok=True)
            torch.onnx.export(
                _Logits(self.module).eval(), (torch.from_numpy(calibration[:1]),), path, dynamo=True,
                opset_version=opset, input_names=[INPUT], external_data=False, verbose=False,
            )  # fmt: skip
            np.savez(path.with_name("images.npz"), calibration=calibration)
        np.savez(self.folder / "images.npz", calibration=calibration)

    def _calibration(self) -> Array:
        """Save the images; return those to calibrate on, as the model takes them."""
        if self.trained:
            fashion.save_sets(self.folder)
            return self.subject.read_images("calibration", CALIBRATION_IMAGES)[0]
        preprocess = self.subject.model.preprocess
        save_made_up(self.folder / "calibration.npz", preprocess, _SPEED_IMAGES)
        return make_input(preprocess, _SPEED_IMAGES)


class _Logits(torch.nn.Module):
    """A transformers classifier that returns its logits and nothing else."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixel_values: torch.Tensor) -> Any:
        return self.module(pixel_values).logits


def all_cases(work: Path) -> Iterator[Case]:
    """Yield two models for speed, then a trained one and its twin that is hostile to INT8."""

    def random(sizes: Mapping[str, int]) -> Callable[[Path], None]:
        return lambda folder: as_transformers.save_random(folder, sizes)

    def copy(model: Callable[[], FashionVit]) -> Callable[[Path], None]:
        return lambda folder: as_transformers.save_copy(folder, model(), MEAN, STD)

    yield Case("DeiT-Tiny", work / "deit-tiny", random(as_transformers.DEIT_TINY), trained=False)
    yield Case("ViT-Base", work / "vit-base", random(as_transformers.VIT_BASE), trained=False)
    yield Case("Fashion-MNIST", work / "fashion", copy(hostile.load_trained), trained=True)
    yield Case("Fashion-MNIST, INT8-hostile", work / "hostile", copy(hostile.int8_hostile), trained=True)


Maker = Callable[[Case, Path], None]
"""Writes the model to a path; raises ToolError or VitdeployError."""


@dataclass(frozen=True)
class Contender:
    """A way to run a model.

    Attributes:
        title: its name in the table.
        numbers: what the model was made to compute in.
        path: the model's file or folder, in the folder of a case.
        engine: what opens it.
        maker: what makes it; None where `Case.prepare` does.
    """

    title: str
    numbers: Literal["fp32", "int8", "auto"]
    path: str
    engine: Literal["torch", "torch.compile", "onnxruntime", "openvino", "openvino at f32", "vitdeploy"]
    maker: Maker | None = None

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
            return load(case.folder / self.path).manifest.target.precision
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
            return f"{session.count_fused_attention()}/{case.sites}"
        if self.engine == "onnxruntime":
            return f"{count_attention_in_onnxruntime(path, case.feeds, session.threads or 1)}/{case.sites}"
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


def _export(case: Case, path: Path) -> None:
    """Run `vitdeploy export --precision auto` with the images that the others calibrate on."""
    recipe = recipes.compose(
        case.subject.spec, target=path.name, precision="auto", calibration=case.subject.calibration,
        weights=None if case.trained else "random",
    )  # fmt: skip
    export(recipe, path, Silent())


PICKS = ("**vitdeploy** onnxruntime auto", "**vitdeploy** openvino auto")
CONTENDERS = (
    Contender("PyTorch eager", "fp32", "hf", "torch"),
    Contender("torch.compile", "fp32", "hf", "torch.compile"),
    Contender("ONNX Runtime, opset 20", "fp32", "opset20/model.onnx", "onnxruntime"),
    Contender("ONNX Runtime, opset 23", "fp32", "opset23/model.onnx", "onnxruntime"),
    Contender("ORT transformers optimizer", "fp32", "opset20/ort-transformers.onnx", "onnxruntime", _run_ort_optimizer),
    Contender("optimum-onnx export", "fp32", "onnx-fp32.onnx", "onnxruntime", _run_optimum_onnx),
    Contender("optimum-onnx ORTOptimizer O3", "fp32", "onnx-optimized.onnx", "onnxruntime", _run_optimum_onnx),
    Contender("OpenVINO at f32, opset 20", "fp32", "opset20/model.onnx", "openvino at f32"),
    Contender("OpenVINO at f32, opset 23", "fp32", "opset23/model.onnx", "openvino at f32"),
    Contender("optimum-intel export, at f32", "fp32", "intel-fp32.xml", "openvino at f32", _run_optimum_intel),
    Contender("optimum-intel export", "fp32", "intel-fp32.xml", "openvino", _run_optimum_intel),
    Contender("optimum-intel OVQuantizer", "int8", "intel-int8.xml", "openvino", _run_optimum_intel),
    Contender("optimum-intel OVQuantizer, at f32", "int8", "intel-int8.xml", "openvino at f32", _run_optimum_intel),
    Contender("NNCF, nothing set", "int8", "opset23/nncf-plain.xml", "openvino", _run_peer),
    Contender("NNCF, model_type TRANSFORMER", "int8", "opset23/nncf.xml", "openvino", _run_peer),
    Contender("ORT quantize_dynamic", "int8", "opset20/ort-dynamic.onnx", "onnxruntime", _run_peer),
    Contender("ORT quantize_static", "int8", "opset20/ort-static.onnx", "onnxruntime", _run_peer),
    Contender("optimum-onnx ORTQuantizer dynamic", "int8", "onnx-dynamic.onnx", "onnxruntime", _run_optimum_onnx),
    Contender("optimum-onnx ORTQuantizer static", "int8", "onnx-static.onnx", "onnxruntime", _run_optimum_onnx),
    Contender(PICKS[0], "auto", "onnxruntime", "vitdeploy", _export),
    Contender(PICKS[1], "auto", "openvino", "vitdeploy", _export),
)
