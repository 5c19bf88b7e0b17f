"""Power mode and clocks of the device: changed only on request, and restored whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import run, start
from tests.cli.test_contract import answer
from tests.remote.conftest import process_of, script, wait_until, when, working
from tests.remote.far import Far

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("near")]

JETSON = {
    "nvpmodel": (
        'if [ "$1" = -q ]; then echo "NV Power Mode: MODE_$(cat $P/mode)"; cat $P/mode; else echo "$2" > $P/mode; fi'
    ),
    # NVIDIA's ends with 0 after "Error: ..", and stores over nothing.
    "jetson_clocks": (
        'case $1 in --store) [ -e "$2" ] && { echo "Error: $2 exists"; exit 0; }; cat $P/clocks > "$2";; '
        '--restore) [ -e $P/stuck ] && { echo "Error: Failed to restore $2"; exit 0; }; cat "$2" > $P/clocks;; '
        "*) echo locked > $P/clocks;; esac"
    ),
}


@pytest.fixture
def power(far: Far) -> Iterator[Path]:
    """A far side that has NVIDIA's two commands; they keep power mode and clocks in files here."""
    folder = far.folder / "power"
    folder.mkdir(exist_ok=True)
    (folder / "mode").write_text("2\n")
    (folder / "clocks").write_text("free\n")
    (folder / "log").write_text("")
    scripts = [
        script(far.folder / "bin" / name, f"P={folder}", f'echo "{name} $*" >> $P/log', line)
        for name, line in JETSON.items()
    ]
    # This test need not be root's.
    scripts.append(script(far.folder / "bin" / "sudo", "shift", 'exec "$@"'))
    yield folder
    for path in scripts:
        with suppress(FileNotFoundError):
            Path(path).unlink()


def state(power: Path) -> tuple[str, str]:
    """The power mode and the clocks there."""
    return (power / "mode").read_text().strip(), (power / "clocks").read_text().strip()


def test_clocks_are_changed_while_it_is_timed_and_restored(
    lab: Callable[..., Far], power: Path, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    far = lab(power_mode=0, lock_clocks=True)
    states = []
    watching = when(lambda: working(far), lambda: states.append(state(power)))
    assert answer(run("bench", copy(artifact), "--seconds", "1", "--host", "lab", "--json"))["runs"]
    watching.join()
    assert states == [("0", "locked")]
    assert state(power) == ("2", "free")
    assert answer(run("hosts", "lab", "--json"))["hosts"][0]["device"]["condition"]["power_mode"] == "2 MODE_2"


def test_clocks_are_not_touched_unless_asked(
    lab: Callable[..., Far], power: Path, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    lab()
    assert answer(run("bench", copy(artifact), "--seconds", "0.2", "--host", "lab", "--json"))["runs"]
    assert "jetson_clocks" not in (power / "log").read_text()
    assert "-m" not in (power / "log").read_text()


@pytest.mark.parametrize("victims", [1, 2], ids=["child", "worker and child"])
def test_clocks_are_restored_even_after_a_kill(
    lab: Callable[..., Far], power: Path, artifact: Path, copy: Callable[[Path], Path], victims: int
) -> None:
    """The worker restores them when its child is killed; when the worker is killed too, the client asks for it."""
    far = lab(power_mode=0, lock_clocks=True)
    states = []

    def kill() -> None:
        states.append(state(power))
        for victim in process_of(far)[-victims:]:
            os.kill(victim, signal.SIGKILL)

    killing = when(lambda: working(far), kill)
    assert run("bench", copy(artifact), "--seconds", "60", "--host", "lab").code == 1
    killing.join()
    assert states == [("0", "locked")]
    assert state(power) == ("2", "free")


def test_clocks_are_restored_by_the_next_client_when_all_were_killed(
    lab: Callable[..., Far], power: Path, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    far = lab(power_mode=0, lock_clocks=True)
    client = start("bench", copy(artifact), "--seconds", "60", "--host", "lab")
    wait_until(lambda: working(far), "the job runs")
    client.kill()
    client.communicate()
    for victim in process_of(far):
        os.kill(victim, signal.SIGKILL)
    assert state(power) == ("0", "locked")
    wait_until(lambda: answer(run("hosts", "lab", "--json"))["hosts"][0]["state"] == "ready", "the lock is free")
    assert state(power) == ("2", "free")


def test_a_power_mode_that_needs_a_restart_is_reported(
    lab: Callable[..., Far], power: Path, far: Far, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    """nvpmodel then asks whether it may restart, changes nothing, and exits with 0."""
    script(
        far.folder / "bin" / "nvpmodel",
        "echo 'NV Power Mode: 15W'; echo 2; echo 'REBOOT NOW? y/n'; read answer; exit 0",
    )
    lab(power_mode=0)
    bench = answer(run("bench", copy(artifact), "--seconds", "0.2", "--host", "lab", "--json"))
    assert bench["valid"] is False
    message = "lab: power mode 0 was not set: nvpmodel stays in mode 2 15W: the mode needs a restart of the device"
    assert message in bench["doubts"]
    assert state(power) == ("2", "free")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("echo 'must be root' >&2; exit 1", "must be root"),
        (
            '[ "$1" = --store ] && echo x > "$2" || echo "Error: Failed to max GPU frequency!"',
            "Error: Failed to max GPU frequency!",
        ),
    ],
    ids=["exit code", "said so and ended well"],
)
def test_clocks_that_may_not_be_set_make_the_measurement_doubtful(
    lab: Callable[..., Far], power: Path, far: Far, artifact: Path, copy: Callable[[Path], Path], line: str, reason: str
) -> None:
    script(far.folder / "bin" / "jetson_clocks", line)
    lab(lock_clocks=True)
    bench = answer(run("bench", copy(artifact), "--seconds", "0.2", "--host", "lab", "--json"))
    assert bench["valid"] is False
    assert f"lab: the clocks are not locked: {reason}" in bench["doubts"]
    assert state(power) == ("2", "free")
    assert not (far.venv / "vitdeploy.clocks").exists() or reason.startswith("Error")
    (far.venv / "vitdeploy.clocks").unlink(missing_ok=True)


def test_clocks_that_could_not_be_restored_are_reported_and_restored_the_next_time(
    lab: Callable[..., Far], power: Path, artifact: Path, copy: Callable[[Path], Path]
) -> None:
    lab(lock_clocks=True)
    (power / "stuck").touch()
    bench = answer(run("bench", copy(artifact), "--seconds", "0.2", "--host", "lab", "--json"))
    assert any("the clocks could not be restored: Error: Failed to restore" in doubt for doubt in bench["doubts"])
    assert state(power) == ("2", "locked")
    [listed] = answer(run("hosts", "lab", "--json"))["hosts"]
    assert "the clocks could not be restored" in listed["why"]
    (power / "stuck").unlink()
    [listed] = answer(run("hosts", "lab", "--json"))["hosts"]
    assert (listed["state"], listed["why"]) == ("ready", "")
    assert state(power) == ("2", "free")
