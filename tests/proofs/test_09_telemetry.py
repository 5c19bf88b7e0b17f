"""Point 9: no telemetry and no network, on every path and in child processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_NAMESPACES = ["unshare", "--map-root-user", "--net", "--mount"]
_KEPT = {".cache", "ov", "tmp"}
"""What vitdeploy itself writes into the home folder of these tests: cached graphs, and the artifact."""


def _environment(home: Path) -> dict[str, str]:
    """The environment of a user who has set nothing: CI systems switch some telemetry off."""
    inherited = ("PATH", "PYTHONPATH", "LANG", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "OMP_WAIT_POLICY")
    (home / "tmp").mkdir(parents=True, exist_ok=True)
    return {
        **{name: os.environ[name] for name in inherited if name in os.environ},
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
    }


def _run_without_route(home: Path, *command: str) -> list[str]:
    """Run Python in a network namespace without a route. Return the names that it looked up, and what else it sent."""
    out = home.parent / "packets"
    harness = [sys.executable, "-m", "tests.proofs.no_network", str(out), sys.executable]
    environment = _environment(home)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path.cwd()), environment.get("PYTHONPATH", "")])
    try:
        allowed = not subprocess.run([*_NAMESPACES, "true"], check=False, capture_output=True).returncode
    except OSError:
        allowed = False
    if not allowed:
        pytest.skip("this kernel does not let users make network namespaces")
    done = subprocess.run(
        [*_NAMESPACES, *harness, *command], env=environment, cwd=Path.cwd(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out.read_text(encoding="utf-8").splitlines()


def test_a_lookup_is_noticed(tmp_path: Path) -> None:
    """Without this, the tests below could not fail."""
    script = "import socket\ntry: socket.getaddrinfo('telemetry.example', 443)\nexcept OSError: pass"
    assert "telemetry.example" in _run_without_route(tmp_path / "home", "-c", script)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_importing_vitdeploy_silences_an_engine(tmp_path: Path, engine: str) -> None:
    pytest.importorskip(engine)
    home = tmp_path / "home"
    script = f"import vitdeploy.artifact, {engine}, subprocess, sys"
    assert _run_without_route(home, "-c", script) == []
    assert {path.name for path in home.iterdir()} == {"tmp"}
    assert list((home / "tmp").iterdir()) == []


def test_onnxruntime_is_silent_in_children_that_do_not_import_vitdeploy(tmp_path: Path) -> None:
    home = tmp_path / "home"
    script = (
        "import vitdeploy, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import onnxruntime'], check=True)\n"
        "from vitdeploy import telemetry\n"
        "environment = telemetry.environment_without()\n"
        "subprocess.run([sys.executable, '-c', 'import openvino'], check=True, env=environment)"
    )
    assert _run_without_route(home, "-c", script) == []
    assert {path.name for path in home.iterdir()} == {"tmp"}
    assert list((home / "tmp").iterdir()) == []


@pytest.mark.parametrize("value", ["0", ""])
def test_an_older_setting_does_not_switch_it_on(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    from vitdeploy import telemetry

    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    telemetry.switch_off()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_export_bench_and_doctor_send_nothing_and_leave_no_id(tmp_path: Path) -> None:
    home = tmp_path / "home"
    artifact = str(home / "ov")
    script = (
        "import subprocess, sys\n"
        "def vitdeploy(*words):\n"
        "    subprocess.run([sys.executable, '-m', 'vitdeploy', *words, '--quiet'], check=True)\n"
        f"vitdeploy('export', 'demo:digits', '--target', 'openvino', '-o', {artifact!r})\n"
        f"vitdeploy('bench', {artifact!r}, '--seconds', '0.3')\n"
        "vitdeploy('doctor')\n"
    )
    assert _run_without_route(home, "-c", script) == []
    assert {path.name for path in home.iterdir()} <= _KEPT
    assert [path.name for path in (home / ".cache").iterdir()] == ["vitdeploy"]
    assert {path.name for path in (home / "tmp").iterdir() if not path.name.startswith("torchinductor")} == set()
