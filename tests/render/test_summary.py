from tests.evidence import audit, bench, evaluation, run
from vitdeploy.evidence import Check, Gate
from vitdeploy.render.summary import Summary, summarize

GATE = Gate(
    verdict="fail",
    checks=(Check(name="speed-up", observed=None, limit=1.2, status="invalid", why="doubtful: it drifted"),),
)


def sides(found: Summary) -> dict[str, tuple[str, str]]:
    return {row.label: (row.reference, row.artifact) for row in found.rows}


def test_everything_side_by_side() -> None:
    found = summarize(audit(), bench(), evaluation(data="val"), GATE)
    assert (found.reference, found.artifact) == ("FP32 PyTorch", "openvino int8")
    rows = sides(found)
    assert rows["latency p50 (ms)"] == ("23.8", "15.9")
    assert rows["speed-up, 95 % interval (×)"] == ("1", "1.50 [1.45, 1.55]")
    assert rows["top-1 (%)"] == ("72.10", "72.00")
    assert rows["top-1 drop, 95 % interval (points)"] == ("–", "0.10 [-0.15, 0.35]")
    assert rows["attention fused (sites)"] == ("–", "12 of 12")
    assert rows["verdict"] == ("–", "FAIL")
    assert "on 10,000 samples of val, the drop is at most 0.30 points" in found.notes[0]


def test_missing_evidence_has_its_row() -> None:
    rows = sides(summarize(None, None, None, None))
    assert rows == {
        "latency (ms)": ("not measured", "not measured"),
        "accuracy": ("not evaluated", "not evaluated"),
        "attention fused (sites)": ("–", "not audited"),
        "verdict": ("–", "not judged"),
    }


def test_without_a_reference() -> None:
    alone = bench(1, 1, 1, "no FP32 reference here", runs=(run("openvino-int8", 10.0),))
    found = summarize(None, alone, None, None)
    assert found.artifact == "openvino-int8"
    assert sides(found)["latency p50 (ms)"] == ("–", "10.0")
    assert sides(found)["speed-up, 95 % interval (×)"] == ("–", "–")
    assert found.notes == ("doubt: no FP32 reference here",)


def test_random_weights_come_first_and_a_doubt_is_shown_once() -> None:
    found = summarize(audit(), bench(1, 1, 1, "it drifted", "threads differ"), None, GATE, random_weights=True)
    assert found.notes == (
        "random weights: accuracy means nothing",
        "doubt: threads differ",
        "speed-up: doubtful: it drifted",
    )
