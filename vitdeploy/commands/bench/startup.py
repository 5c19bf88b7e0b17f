"""Measure the start-up of an artifact: a process of its own opens it and runs it once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

from vitdeploy import apart
from vitdeploy.artifact import Artifact
from vitdeploy.evidence import Startup

_TIMEOUT_S = 300


def start_process(artifact: Artifact, threads: int, batch: int) -> Startup | str:
    """Return load time, time of the first inference and peak memory; or the reason why they are unknown."""
    streams = artifact.manifest.recipe.target.options.get("streams") or 0
    words = apart.command("vitdeploy.commands.bench.startup", artifact.path, threads, batch, streams)
    try:
        process = subprocess.run(words, capture_output=True, text=True, timeout=_TIMEOUT_S, check=True)
        return Startup.model_validate_json(process.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines()
        ending = f"ended by signal {-error.returncode}" if error.returncode < 0 else f"exit code {error.returncode}"
        return f"{ending}{f': {lines[-1]}' if lines else ''}"
    except subprocess.TimeoutExpired:
        return f"it took more than {_TIMEOUT_S} s"
    except (OSError, ValueError, IndexError) as error:
        return str(error) or "it printed nothing"


def _main(path: Path, threads: int, batch: int, streams: int | None) -> None:
    """Measure this process, which has done nothing else before. The engine's libraries are loaded before the timing.

    The parent process has verified the artifact.
    """
    from vitdeploy import artifact as artifacts
    from vitdeploy import targets
    from vitdeploy.data.synthetic import natural_image
    from vitdeploy.runtime.artifact_session import feed, open_session, set_streams

    artifact = set_streams(artifacts.load(path, verify=False), streams)
    images = feed(artifact, natural_image(0, artifact.manifest.preprocess, batch))
    targets.find(artifact.manifest.recipe.target).load_engine()
    engine_bytes = peak_bytes()
    start = time.perf_counter()
    with open_session(artifact, threads) as session:
        opened = time.perf_counter()
        session.run(images)
        finished = time.perf_counter()
    startup = Startup(
        load_ms=round(1e3 * (opened - start), 2),
        first_ms=round(1e3 * (finished - opened), 3),
        peak_bytes=peak_bytes(),
        engine_bytes=engine_bytes,
    )
    sys.stdout.write(json.dumps(startup.model_dump()) + "\n")


def peak_bytes() -> int | None:
    """Return the peak resident memory of this process.

    On Linux it is read from /proc, because `getrusage` of a new program begins with the peak of its parent process.
    """
    try:
        match = re.search(r"^VmHWM:\s+(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    except OSError:
        match = None
    if match:
        return int(match[1]) << 10
    try:
        import resource
    except ImportError:
        return None
    scale = 1 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


if __name__ == "__main__":
    _threads, _batch, _streams = (int(word) for word in sys.argv[2:])
    _main(Path(sys.argv[1]), _threads, _batch, _streams or None)
