"""A machine with a GPU and TensorRT, neither of which is there."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.fakes import onnxruntime_gpu
from vitdeploy.targets._onnxruntime import availability
from vitdeploy.targets._tensorrt import cuda as _cuda
from vitdeploy.targets._tensorrt import gpu as _gpu

Machine = Callable[..., onnxruntime_gpu.Machine]
RELEASES = ("10.3", "10.16", "11.4")
ORIN = {"name": "Orin", "sm": 87, "multiprocessors": 8, "integrated": True}
CARD = {"name": "NVIDIA RTX A4000", "sm": 86, "multiprocessors": 48, "integrated": False}


VITS = f"python:{Path(__file__).parents[1] / 'toys' / 'vits.py'}"


@pytest.fixture(scope="session")
def small_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The models of `tests.toys.vits` as bundles for TensorRT, by name and precision, each made once."""
    from vitdeploy import recipe as recipes
    from vitdeploy.commands.export import export
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Silent

    @cache
    def make(model: str, precision: str = "fp16") -> Any:
        images = {"calibration": "demo:digits"} if "int8" in precision else {}
        recipe = recipes.compose(f"{VITS}:{model}", target="tensorrt", precision=precision, **images)
        recipe = recipes.with_target_options(recipe, {"rehearsal": False})
        with pytest.MonkeyPatch.context() as workstation:
            workstation.delitem(sys.modules, "tensorrt", raising=False)
            return export(recipe, tmp_path_factory.mktemp(model) / precision, Silent(), cache=GraphCache()).artifact

    return make


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake driver library, compiled. Who has loaded it still has no `libcuda.so.1`."""
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="session")
def board_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for other processes: once it is loaded there, it is their `libcuda.so.1`. Never load it in this one."""
    return compile_driver(tmp_path_factory.mktemp("board_driver"), "-Wl,-soname,libcuda.so.1")


def compile_driver(folder: Path, *flags: str) -> Path:
    """Compile the fake driver library into a folder."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the fake driver")
    library = folder / "libcuda.so.1"
    source = Path(__file__).with_name("libcuda.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, source, "-o", library], check=True)
    return library


@pytest.fixture
def device(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Put a GPU and a TensorRT into this machine; the module is returned. Every test has to give all memory back."""
    cuda = ctypes.CDLL(str(driver))
    cuda.fakeRefuseCapture(0)
    before = cuda.fakeLive()

    from tests.fakes import tensorrt

    def install(release: str = "10.3", power_mode: str | None = "MAXN", **gpu: Any) -> Any:
        facts = ORIN | {"memory": 8 << 30, "count": 1} | gpu
        cuda.fakeDevice.argtypes = (ctypes.c_char_p, *(ctypes.c_int,) * 4, ctypes.c_size_t)
        numbers = (facts[key] for key in ("count", "sm", "multiprocessors", "integrated", "memory"))
        cuda.fakeDevice(str(facts["name"]).encode(), *(int(number) for number in numbers))
        monkeypatch.setattr(_cuda, "LIBRARY", str(driver))
        monkeypatch.setattr(_gpu, "power_mode", lambda: power_mode)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        module = tensorrt.module(release, cuda)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    yield install
    assert cuda.fakeLive() == before, "memory, streams, events or graphs of the GPU were not given back"


@pytest.fixture
def gpu_machine(device: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine with a GPU, the package onnxruntime-gpu and TensorRT-RTX's plug-in."""

    def set_up(*faults: str, gpu: dict[str, Any] = CARD, plugin: bool = True) -> onnxruntime_gpu.Machine:
        device(**gpu)
        state = onnxruntime_gpu.Machine(set(faults))
        monkeypatch.setitem(sys.modules, "onnxruntime", onnxruntime_gpu.module(state))
        library = tmp_path / "libonnxruntime_providers_nv_tensorrt_rtx.so"
        library.touch()
        module = ModuleType(availability.PLUGIN_MODULE)
        module.__dict__.update(
            __version__="0.5.0", __spec__=ModuleSpec(module.__name__, None), get_library_path=lambda: str(library)
        )
        if plugin:
            monkeypatch.setitem(sys.modules, availability.PLUGIN_MODULE, module)
        return state

    return set_up


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without NVIDIA's driver, also if another test of this process has loaded the fake one."""
    monkeypatch.setattr(_cuda, "LIBRARY", str(tmp_path / "libcuda.so.1"))
