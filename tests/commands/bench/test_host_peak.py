"""The fastest matrix product of this host."""

import pytest

from vitdeploy import environment
from vitdeploy.commands.bench import host_peak
from vitdeploy.evidence import Peak


def test_a_disturbed_peak_only_reads_lower() -> None:
    one = {"fp32": Peak(gops=100, engine="a"), "int8": Peak(gops=300, engine="a")}
    other = {"fp32": Peak(gops=90, engine="b")}
    assert host_peak.merge_peaks(one, other) == host_peak.merge_peaks(other, one) == one


@pytest.mark.timing
def test_peaks_of_this_host() -> None:
    found = host_peak.measure_peaks(1)
    assert set(found) == {"fp32", "int8"} | ({"bf16"} if environment.host().bfloat16_dot_product else set())
    assert 1 < found["fp32"].gops < 2000  # of one thread: two AVX-512 units at 5 GHz do 320
    assert found["int8"].gops > 0.5 * found["fp32"].gops
    assert found["fp32"].engine.split()[0] in ("onnxruntime", "openvino")
