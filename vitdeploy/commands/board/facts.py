"""The state of a board, in the words of its own files and programs. Nothing is changed, and no root is needed."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

_COMMAND_SECONDS = 15
_LONGEST_FILE = 16 << 10

FILES = (
    "etc/nv_tegra_release",
    "proc/device-tree/model",
    "proc/device-tree/compatible",
    "etc/os-release",
    "proc/meminfo",
)
"""Files that are recorded as they are."""
NUMBERS = {
    "thermal": ("sys/class/thermal/thermal_zone*", ("type", "temp")),
    "cpu": (
        "sys/devices/system/cpu/cpufreq/policy*",
        ("related_cpus", "scaling_governor", "scaling_cur_freq", "scaling_min_freq", "scaling_max_freq"),
    ),
    "devices": ("sys/class/devfreq/*", ("governor", "cur_freq", "min_freq", "max_freq")),
    "monitors": (
        "sys/class/hwmon/hwmon*",
        ("name", "in*_label", "in*_input", "curr*_input", "power*_input", "oc*_event_cnt"),
    ),
}
"""Group -> the folders of the kernel's sensors and clocks, and their files."""
COMMANDS: dict[str, tuple[str, ...]] = {
    "uname": ("uname", "-srm"),
    "nvpmodel": ("nvpmodel", "-q"),
    "jetson_clocks": ("jetson_clocks", "--show"),
    "nvidia-smi": (
        "nvidia-smi",
        "--query-gpu=name,driver_version,compute_cap,memory.total,power.limit,clocks.sm,clocks.max.sm",
        "--format=csv",
    ),
    "packages": (
        "dpkg-query", "--show", "--showformat=${Package} ${Version}\\n",
        "nvidia-l4t-*", "nvidia-jetpack*", "libnvinfer*", "libnvonnxparsers*", "python3-libnvinfer*", "tensorrt*",
        "cuda-cudart-*", "libcudnn*",
    ),
}  # fmt: skip
TEGRASTATS = ("tegrastats", "--interval", "500")
_TEGRASTATS_SECONDS = 3


def read_files(root: Path = Path("/")) -> dict[str, str]:
    """Return the contents of `FILES` by path. Files that a board does not have are left out."""
    return {f"/{name}": text for name in FILES if (text := _read(root / name))}


def read_numbers(root: Path = Path("/")) -> dict[str, dict[str, str]]:
    """Return the kernel's sensors and clocks: group -> FOLDER/FILE -> content."""
    return {group: dict(_read_group(root, pattern, names)) for group, (pattern, names) in NUMBERS.items()}


def run_commands() -> dict[str, str]:
    """Return the output of each of `COMMANDS`, or why there is none."""
    return {name: run_command(words) for name, words in COMMANDS.items()}


def run_tegrastats() -> str:
    """Return a few lines of tegrastats, or why there are none. It runs until it is stopped."""
    return run_command(TEGRASTATS, _TEGRASTATS_SECONDS, endless=True)


def run_command(words: Sequence[str], seconds: float = _COMMAND_SECONDS, *, endless: bool = False) -> str:
    """Return the output of a program, standard error after it, or why there is none.

    Args:
        words: the command.
        seconds: the time after which it is stopped.
        endless: True if it is meant to be stopped.
    """
    try:
        process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        return f"not run: {error.strerror}"
    with process:
        try:
            output, messages = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                output, messages = process.communicate(timeout=2)
            except subprocess.TimeoutExpired:
                process.kill()
                output, messages = process.communicate()
            messages += "" if endless else f"stopped after {seconds:.0f} s\n"
        except BaseException:
            process.kill()
            raise
    return (output + messages)[:_LONGEST_FILE]


def _read_group(root: Path, pattern: str, names: Sequence[str]) -> Iterator[tuple[str, str]]:
    for folder in sorted(root.glob(pattern)):
        for name in names:
            for path in sorted(folder.glob(name)):
                if text := _read(path):
                    yield f"{folder.name}/{path.name}", text


def _read(path: Path) -> str:
    """Return the content of a file; empty if it cannot be read. Some clocks cannot while their unit is asleep."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(_LONGEST_FILE).decode("utf-8", "replace").replace("\0", "\n").strip("\n ")
    return ""
