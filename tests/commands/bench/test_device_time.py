"""What `bench` looks at beside the latencies: only what is there to be seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.commands.bench.device_time import measure_alone
from vitdeploy.errors import MeasureError
from vitdeploy.measure import power
from vitdeploy.measure.power import RailMeter
from vitdeploy.measure.power.sensors import Rail
from vitdeploy.progress import Silent
from vitdeploy.runtime.artifact_session import feed, make_shared_images, open_session
from vitdeploy.session import Session


@pytest.mark.timing  # it reads power on a real clock
def test_a_cpu_without_a_meter_is_not_opened_again(
    demo: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = demo(target="onnxruntime")
    given = feed(artifact, make_shared_images([artifact], 1))

    def refused() -> Session:
        raise MeasureError("opened", fix="")

    monkeypatch.setattr(power, "find_meter", lambda: (None, "no meter"))
    found = measure_alone(artifact, refused, given, 1.0, Silent())
    assert found.power.why == "no meter"

    meter = RailMeter([Rail("VDD_IN", lambda: 5.0)])
    monkeypatch.setattr(power, "find_meter", lambda: (meter, ""))
    found = measure_alone(artifact, lambda: open_session(artifact, 1), given, 1.0, Silent())
    assert found.device == (), "ONNX Runtime on a CPU has no clock beside the caller's"
    (rail,) = found.power.rails
    assert rail.watts == pytest.approx(5.0)
