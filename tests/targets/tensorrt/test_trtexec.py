"""trtexec times the same engine: its flags in versions 10 and 11, and its output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitdeploy import targets
from vitdeploy.errors import MeasureError, TargetUnavailable
from vitdeploy.measure.statistics import percentile
from vitdeploy.recipe import TargetSpec
from vitdeploy.targets import Compiled
from vitdeploy.targets._tensorrt.trtexec import find_trtexec, parse_times, read_version, time_with_trtexec

FAKES = Path(__file__).parents[2] / "fakes"


@pytest.fixture
def trtexec(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A trtexec of some version on PATH; the file returned lists how it was called."""

    def install(release: str, *, fails: bool = False) -> Path:
        seen = tmp_path / "seen"
        monkeypatch.setenv("PATH", str(FAKES), prepend=":")
        monkeypatch.setenv("FAKE_TRTEXEC", release)
        monkeypatch.setenv("FAKE_TRTEXEC_SEEN", str(seen))
        monkeypatch.setenv("FAKE_TRTEXEC_FAILS", "yes" if fails else "")
        return seen

    return install


def built(folder: Path, backend: str, *, dynamic: bool = False) -> Compiled:
    folder.mkdir(exist_ok=True)
    (folder / "engine.plan").write_bytes(b"plan")
    record = {"backend": backend, "typing": "strong", "gpu": None, "dynamic": dynamic}
    (folder / "engine.json").write_text(json.dumps(record))
    return Compiled(folder, "engine.plan", backend)


@pytest.mark.parametrize(
    ("release", "version", "flags"),
    [
        ("10.3", "10.3.0", ["--useCudaGraph", "--useSpinWait"]),
        ("10.16", "10.16.2", ["--useCudaGraph", "--useSpinWait"]),
        ("11.4", "11.4.1", ["--includeDataTransfers"]),
    ],
)
def test_each_version_is_asked_for_the_same(
    release: str, version: str, flags: list[str], trtexec: Any, tmp_path: Path
) -> None:
    seen = trtexec(release)
    made = built(tmp_path / "out", f"tensorrt {version}.9", dynamic=True)
    target = targets.find(TargetSpec(kind="tensorrt"))
    found = target.time_externally(made, {"input": (2, 3, 32, 32)}, 2.5)
    assert found is not None
    assert (found.name, len(found.device_ms)) == ("trtexec", 200)
    assert (percentile(found.device_ms, 50), percentile(found.device_ms, 99)) == (4.99, 5.97)
    waited = percentile(found.end_to_end_ms, 50)
    assert waited == pytest.approx(4.99 + 0.3), "the copies are part of what a caller waits for"
    (call,) = map(json.loads, seen.read_text().splitlines())
    assert call[0] == f"--loadEngine={tmp_path / 'out' / 'engine.plan'}"
    assert "--duration=3" in call
    assert "--shapes=input:2x3x32x32" in call
    assert [flag for flag in call if "=" not in flag] == flags


def test_a_fixed_engine_is_given_no_shapes(trtexec: Any, tmp_path: Path) -> None:
    seen = trtexec("10.3")
    built(tmp_path / "out", "tensorrt 10.3.0")
    time_with_trtexec(tmp_path / "out", "engine.plan", {"input": (1, 3, 32, 32)}, 1)
    assert "--shapes" not in seen.read_text()


def test_another_version_is_refused_by_name(trtexec: Any, tmp_path: Path) -> None:
    seen = trtexec("11.4")
    built(tmp_path / "out", "tensorrt 10.3.0")
    with pytest.raises(TargetUnavailable, match=r"built by TensorRT 10\.3\.0, and .*trtexec is of TensorRT 11\.4\.1"):
        time_with_trtexec(tmp_path / "out", "engine.plan", {}, 1)
    assert not seen.exists()


def test_the_last_error_of_trtexec_is_in_the_message(trtexec: Any, tmp_path: Path) -> None:
    trtexec("10.3", fails=True)
    built(tmp_path / "out", "tensorrt 10.3.0")
    with pytest.raises(MeasureError, match=r"trtexec failed: Error.1.: Cuda failure: out of memory"):
        time_with_trtexec(tmp_path / "out", "engine.plan", {}, 1)


def test_without_trtexec_there_are_no_times(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if find_trtexec() is None:
        assert time_with_trtexec(built(tmp_path / "out", "tensorrt 10.3.0").folder, "engine.plan", {}, 1) is None


def test_the_fake_refuses_what_a_version_does_not_have(trtexec: Any, tmp_path: Path) -> None:
    from vitdeploy.targets._tensorrt.trtexec import _run

    trtexec("11.4")
    assert read_version("trtexec") == "11.4.1"
    with pytest.raises(MeasureError, match="Unknown option: --fp16"):
        _run(["trtexec", "--loadEngine=x", "--fp16"], 1)
    assert "deprecated" in _run(["trtexec", "--useCudaGraph", f"--exportTimes={tmp_path / 't'}"], 1)
    trtexec("10.3")
    with pytest.raises(MeasureError, match="Unknown option: --includeDataTransfers"):
        _run(["trtexec", "--loadEngine=x", "--includeDataTransfers"], 1)


@given(st.text(max_size=60) | st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists).map(json.dumps))
def test_damaged_times_are_an_error_of_ours(text: str) -> None:
    with pytest.raises(MeasureError):
        parse_times(text)
