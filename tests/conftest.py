"""The tiny ViT, exported once a session in every way that graphs come."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock

from tests.fakes.fixtures import board_driver, device, driver, gpu_machine, no_gpu, small_bundle
from tests.machine import LOCK_FOLDER, use_own_lock
from tests.remote.far import make_wheel
from tests.short import shorten

if TYPE_CHECKING:
    from torch import nn

    from vitdeploy.artifact import Artifact

__all__ = ["board_driver", "device", "driver", "exported", "gpu_machine", "no_gpu", "small_bundle", "vit"]

pytest_plugins = ("tests.turns",)

# Two runtimes whose threads wait in a spin slow each other down twentyfold when the cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A job that runs in the background, or under nohup, ignores these signals, and so would every process that tests start.
if threading.current_thread() is threading.main_thread() and os.name == "posix":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The writers' arguments by name; a dynamic batch is traced at 2, because exporters specialise a batch of 1.
EXPORTS = {
    "dynamo": ("dynamo", {"opset": 23}),  # Attention as one operator
    "dynamo-20": ("dynamo", {"opset": 20}),  # scaled_dot_product_attention written out
    "legacy-20": ("legacy", {"opset": 20}),
    "legacy-17": ("legacy", {"opset": 17}),  # Gelu written out
    "dynamo-batch": ("dynamo", {"opset": 23, "dynamic": True}),
    "legacy-batch": ("legacy", {"opset": 17, "dynamic": True}),
}


@pytest.fixture(autouse=True)
def _not_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates that tests make are not those of the job that runs the tests."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _one_registry() -> None:
    """PyTorch's exporter lists its translations anew for each export, a third of its time. Once a process is enough."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    if registration is not None and not isinstance(vars(registration.ONNXRegistry)["from_torchlib"], staticmethod):
        registration.ONNXRegistry.from_torchlib = staticmethod(cache(registration.ONNXRegistry.from_torchlib))


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time models for a moment: what the figures are worth is tested in tests/measure, with the usual times.

    Programs that tests start measure as long as ever.
    """
    shorten(monkeypatch.setattr, sys.modules)


@pytest.fixture(autouse=True)
def _fewer_candidates_of_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` go without NNCF, which takes half a minute, and without what only OpenVINO or some CPUs have.

    Tests about them put them back (test_nncf_candidates.py, test_int8_attention_candidates.py,
    test_folded_norm_candidates.py).
    """
    if (choose := sys.modules.get("vitdeploy.pipeline.choose")) is not None:
        monkeypatch.setattr(choose, "list_nncf", lambda *_: [])
        monkeypatch.setattr(choose, "list_folded_norms", lambda *_: [])
        monkeypatch.setattr(choose, "list_int8_attention", lambda *_: [])


def pytest_collection_finish() -> None:
    """Let the garbage collector skip what was imported and collected: a bench collects before each of its rounds."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Exported graphs of the user are not those of the tests. All workers of one run share theirs."""
    os.environ["XDG_CACHE_HOME"] = str(shared_folder(tmp_path_factory) / "cache")


@pytest.fixture(scope="session", autouse=True)
def _own_machine_lock(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A sweep of one worker is no job of another user on the device that another worker tests (tests/remote)."""
    os.environ[LOCK_FOLDER] = str(tmp_path_factory.mktemp("machine"))
    use_own_lock()


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run of pytest see."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built once a run."""
    folder = shared_folder(tmp_path_factory) / "wheel"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            building = folder.with_name("wheel-in-work")
            make_wheel(building)
            building.rename(folder)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """Artifacts of `demo:digits` by the options of `export`, each made once a run. Not to be changed: take a copy."""
    from vitdeploy import artifact as artifacts
    from vitdeploy import recipe as recipes
    from vitdeploy.commands.export import export
    from vitdeploy.pipeline.graph_cache import GraphCache
    from vitdeploy.progress import Silent

    folder = shared_folder(tmp_path_factory)

    @cache
    def make(**options: Any) -> Artifact:
        name = "-".join(f"{key}={value}" for key, value in sorted(options.items())).replace("/", "_").replace(":", ".")
        out = folder / (name or "default")
        with FileLock(f"{out}.lock"):
            if not out.exists():
                export(recipes.compose("demo:digits", **options), out, Silent(), cache=GraphCache())
        return artifacts.load(out)

    return make


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Artifact], Artifact]:
    """A copy of an artifact that a test may change."""
    from vitdeploy import artifact as artifacts

    def make(artifact: Artifact, name: str = "copy") -> Artifact:
        return artifacts.load(Path(shutil.copytree(artifact.path, tmp_path / name / artifact.path.name)))

    return make


@pytest.fixture(scope="session")
def vit() -> nn.Module:
    """The tiny ViT with redrawn weights. Do not change it."""
    from tests import graphs

    return graphs.tiny_vit()


@pytest.fixture(scope="session")
def exported(vit: nn.Module) -> Callable[[str], bytes]:
    """The tiny ViT as ONNX, by the names of `EXPORTS`."""
    from tests import graphs

    @cache
    def write(kind: str) -> bytes:
        exporter, options = EXPORTS[kind]
        image = graphs.images(2 if options.get("dynamic") else 1)
        return getattr(graphs, exporter)(vit, image, **options)

    return write
