"""What `bench` looks at beside the latencies: only what is there to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitdeploy import artifact as artifacts
from vitdeploy import recipe as recipes
from vitdeploy.commands.bench.device_time import observe
from vitdeploy.commands.export import export
from vitdeploy.errors import MeasureError
from vitdeploy.measure import power
from vitdeploy.measure.power import RailMeter
from vitdeploy.measure.power.sensors import Rail
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import feeds, open_session, same_images
from vitdeploy.session import Session


def test_a_cpu_without_a_meter_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(recipes.compose("demo:digits", target="onnxruntime"), tmp_path / "a", Silent())
    artifact = artifacts.load(tmp_path / "a")
    given = feeds(artifact, same_images([artifact]))

    def refused() -> Session:
        raise MeasureError("opened", fix="")

    monkeypatch.setattr(power, "find_meter", lambda: (None, "no meter"))
    found = observe(artifact, refused, given, 1.0, Silent())
    assert found["power"].why == "no meter"

    meter = RailMeter([Rail("VDD_IN", lambda: 5.0)])
    monkeypatch.setattr(power, "find_meter", lambda: (meter, ""))
    found = observe(artifact, lambda: open_session(artifact, 1), given, 1.0, Silent())
    assert found["device"] == (), "ONNX Runtime on a CPU has no clock beside the caller's"
    (rail,) = found["power"].rails
    assert rail.watts == pytest.approx(5.0)
