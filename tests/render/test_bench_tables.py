"""Latency for a terminal: latencies, start-up and size, profiles."""

from tests.evidence import bench, run
from tests.render.test_tables import shown
from tests.verdict.test_sustained import sustained
from vitdeploy.evidence import (
    DeviceTime,
    EndToEnd,
    Interval,
    OperatorShare,
    Pair,
    Peak,
    Profile,
    Roofline,
    Stage,
    Startup,
)
from vitdeploy.render import bench_tables as speed

TWICE = Interval(ratio=2.0, ci95=(1.9, 2.1))


def all_of(found: object) -> str:
    return "\n".join(shown(table) for table in speed.bench(found))  # type: ignore[arg-type]


def test_efficiency_and_the_measured_peak() -> None:
    roof = Roofline(threads=2, peaks={"fp32": Peak(gops=177.0, engine="openvino 1")}, operations={"fp32": 2.5e9})
    text = all_of(bench(roofline=roof, runs=(run("pytorch-fp32", 24.0, efficiency_pct=59.4), run("o", 19.0, TWICE))))
    assert "59 %" in text
    assert "share of the measured peak of 2 threads (fp32 177 × 10⁹ operations a second)" in " ".join(text.split())
    assert "the model needs 2.50 × 10⁹ operations an image" in text
    assert "Start-up" not in text


def test_each_batch_size_is_named_and_has_its_reference() -> None:
    runs = [one for b in (1, 8) for one in (run("pytorch-fp32", 24.0, batch=b), run("openvino", 12.0, TWICE, batch=b))]
    text = all_of(bench(runs=tuple(runs)))
    for part in ("pytorch-fp32 @ 1", "openvino @ 8"):
        assert part in text
    assert text.count("reference") == 2
    swept = tuple(one.model_copy(update={"size_bytes": 5 << 20}) for one in runs if one.name == "openvino")
    assert all_of(bench(runs=swept)).count("5.00 MiB") == 1  # it starts once, whatever the batch


def test_pairs_scenario_and_costs() -> None:
    startup = Startup(load_ms=364.2, first_ms=17.9, peak_bytes=200 << 20, engine_bytes=90 << 20)
    own = run("openvino", 12.0, TWICE, startup=startup, size_bytes=5 << 20)
    text = all_of(bench(runs=(own,), pairs=(Pair(name="b", over="a", speedup=TWICE),), scenario="offline"))
    for part in (
        "batch 1, offline",
        "b over a: 2.00 [1.90, 2.10] times as fast",
        "364",
        "17.9",
        "200 MiB",
        "110 MiB",
        "5.00 MiB",
    ):
        assert part in text
    assert "–" in all_of(bench(runs=(own.model_copy(update={"startup": None}),)))


def test_a_profile() -> None:
    operators = tuple(OperatorShare(name=f"op.{n}", kind="MatMul", role="mlp", ms=1.0) for n in range(20))
    found = Profile(name="openvino", runs=30, total_ms=25.0, roles={"mlp": 20.0}, operators=operators, between_ms=5.0)
    text = all_of(bench(profiles=(found,)))
    for part in ("openvino: 25.0 ms a run", "80.0 %", "between operators", "20.0 %", "op.9"):
        assert part in text
    assert "op.10" not in text  # a screen holds ten; JSON has all


def test_long_names_break_between_words() -> None:
    folder = "openvino-int8 (a-very-long-name-of-an-artifact-of-the-digits)"
    startup = Startup(load_ms=1364.2, first_ms=17.9, peak_bytes=200 << 20, engine_bytes=90 << 20)
    wide = Interval(ratio=11.08, ci95=(2.79, 15.02))
    runs = (
        run("onnxruntime-int8-dynamic", 12.0, wide, startup=startup, size_bytes=5 << 20),
        run(folder, 12.0, wide, startup=startup),
    )
    lines = [line.split("  ")[0].strip() for line in all_of(bench(runs=runs)).splitlines()]
    for part in (
        "onnxruntime-",
        "int8-dynamic",
        "openvino-int8",
        "(a-very-long-",
        "name-of-an-",
        "artifact-of-the-",
        "digits)",
    ):
        assert lines.count(part) == 2, part  # in the latencies, and in start-up and size


def test_title_and_notes_are_as_wide_as_the_screen() -> None:
    stages = (Stage(name="decode", median_ms=26.3, share_pct=60.0), Stage(name="engine", median_ms=9.8, share_pct=40.0))
    timed = EndToEnd(
        images="a made-up JPEG of 1280x720", samples=9, p50_ms=43.1, p90_ms=46.1, p99_ms=54.6, p50_ci95=(38.5, 43.8),
        p90_ci95=(45.0, 47.0), p99_ci95=(50.0, 60.0), stages=stages, blocks=((43.1,),),
    )  # fmt: skip
    text = shown(speed.end_to_end(timed))
    assert text.splitlines()[0] == "From an encoded image to the answer, on a made-up JPEG of 1280x720"
    assert "p50 38.5 to 43.8 ms with 95 % confidence; p90 46.1, p99 54.6 ms\n" in text


def test_a_sustained_load_is_shown_cold_and_steady() -> None:
    text = all_of(bench(sustained=sustained()))
    assert "Sustained load" in text
    assert [line.split() for line in text.splitlines() if "p50 ms" in line and "20.0" in line] == [
        ["p50", "ms", "10.0", "20.0"]
    ]
    assert "the latency changed by +100%, from 10 ms cold to 20 ms at the end" in " ".join(text.split())


def test_times_on_a_device_are_shown_against_the_limit_of_the_recipe() -> None:
    time = DeviceTime(
        name="tensorrt-fp16", source="session", samples=9, device_p50_ms=8, device_p90_ms=9, device_p99_ms=9,
        end_to_end_p50_ms=16, end_to_end_p90_ms=17, end_to_end_p99_ms=18,
    )  # fmt: skip
    table = shown(speed.bench(bench(device=(time,)), 10.0)[1])  # type: ignore[arg-type]
    assert "Against the limit of 10.0 ms" in table
    assert ("within" in table) and ("above" in table)
