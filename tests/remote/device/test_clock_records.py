"""The old power mode and clocks, remembered for the machine: the first record stays until it is restored."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.remote.conftest import script
from tests.remote.device.test_clocks import JETSON, state
from vitdeploy import machine_lock
from vitdeploy.remote.device import clocks
from vitdeploy.remote.messages import ClockSettings

ALL = ClockSettings(power_mode=0, lock_clocks=True)
NOBODY = 65534


@pytest.fixture
def power(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with NVIDIA's two commands and shared folders of its own. A file `stuck-mode` breaks nvpmodel."""
    shared, bin_ = tmp_path / "shared", tmp_path / "bin"
    for folder in (shared, bin_):
        folder.mkdir()
    shared.chmod(0o1777)
    (tmp_path / "mode").write_text("2\n")
    (tmp_path / "clocks").write_text("free\n")
    stuck = 'if [ "$1" = -m ] && [ -e $P/stuck-mode ]; then echo "NVPM ERROR: busy"; exit 1; fi'
    script(bin_ / "nvpmodel", f"P={tmp_path}", stuck, JETSON["nvpmodel"])
    script(bin_ / "jetson_clocks", f"P={tmp_path}", JETSON["jetson_clocks"])
    script(bin_ / "sudo", "shift", 'exec "$@"')
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setattr(machine_lock, "_FOLDERS", (str(shared),))
    monkeypatch.setattr(clocks, "_LASTING_FOLDERS", (str(shared),))
    return tmp_path


def records(power: Path) -> list[str]:
    return sorted(path.name for path in (power / "shared").iterdir())


def test_a_mode_that_could_not_be_restored_is_not_forgotten_by_the_next_job(power: Path) -> None:
    with clocks.apply(ClockSettings(power_mode=0)):
        (power / "stuck-mode").touch()
    assert state(power)[0] == "0", "it is stuck there"
    with clocks.apply(ClockSettings(power_mode=1)) as notes:
        pass
    assert any("power mode 2 could not be restored" in note for note in notes)
    assert any("power mode 1 was not set" in note for note in notes)
    (power / "stuck-mode").unlink()
    assert clocks.restore() == []
    assert state(power)[0] == "2"
    assert records(power) == []


def test_a_mode_of_a_job_in_between_does_not_replace_the_first(power: Path) -> None:
    with clocks.apply(ClockSettings(power_mode=0)):
        (power / "stuck-mode").touch()
    with clocks.apply(ClockSettings(power_mode=1)):
        (power / "stuck-mode").unlink()
    assert state(power)[0] == "2"


def test_what_a_killed_job_left_is_restored_whatever_cache_the_next_one_uses(power: Path) -> None:
    killed = (
        "import os; from vitdeploy import machine_lock; from vitdeploy.remote.device import clocks\n"
        f"machine_lock._FOLDERS = clocks._LASTING_FOLDERS = ({str(power / 'shared')!r},)\n"
        "from vitdeploy.remote.messages import ClockSettings\n"
        "with clocks.apply(ClockSettings(power_mode=0, lock_clocks=True)): os._exit(9)"
    )
    code = subprocess.run([sys.executable, "-c", killed], check=False).returncode
    assert (code, state(power)) == (9, ("0", "locked"))
    with clocks.apply(ClockSettings(power_mode=1)) as notes:
        assert state(power) == ("1", "free")
    assert notes == []
    assert state(power) == ("2", "free")
    assert records(power) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_clocks_of_another_user_are_not_restored_as_root_but_reported(power: Path) -> None:
    """The file says what root writes where."""
    record = power / "shared" / "vitdeploy.clocks"
    record.write_text("planted\n")
    os.chown(record, NOBODY, NOBODY)
    with clocks.apply(ALL) as notes:
        assert state(power) == ("0", "free")
    assert any(f"{record} is of the user with the id {NOBODY}" in note for note in notes)
    assert "the clocks are not locked: an earlier job's clocks must be restored first" in notes
    assert state(power) == ("2", "free")
    assert record.read_text() == "planted\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_mode_of_another_user_is_restored(power: Path) -> None:
    record = power / "shared" / "vitdeploy.power_mode"
    record.write_text("3")
    os.chown(record, NOBODY, NOBODY)
    with clocks.apply(ClockSettings(power_mode=1)) as notes:
        assert state(power)[0] == "1"
    assert notes == []
    assert state(power)[0] == "3"
    assert records(power) == []


@pytest.mark.parametrize("name", ["vitdeploy.power_mode", "vitdeploy.clocks"])
def test_a_planted_link_is_not_followed(power: Path, name: str) -> None:
    precious = power / "precious"
    precious.write_text("1")
    (power / "shared" / name).symlink_to(precious)
    with clocks.apply(ALL) as notes:
        pass
    assert notes
    assert precious.read_text() == "1"
    assert state(power) == ("2", "free")
