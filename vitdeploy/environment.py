"""The fingerprint of this host: what a measurement or an engine depends on, read without any heavy library."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict

LIBRARIES = (
    "vitdeploy", "numpy", "torch", "torchvision", "timm", "transformers", "onnx", "onnx-ir", "onnxscript",
    "onnxruntime", "openvino", "nncf", "tensorrt", "tensorrt-rtx",
)  # fmt: skip

# The instruction sets that decide which INT8 and half-precision kernels a CPU runs.
_ISA = (
    "avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "amx_fp16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip


class Host(BaseModel):
    """A host as far as speed and engines depend on it. `cores` are those this process may use."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    isa: tuple[str, ...]
    cores: int
    memory_gib: float
    system: str
    python: str
    gpu: str | None = None
    jetpack: str | None = None
    power_mode: str | None = None
    """A Jetson's, such as MAXN_SUPER: it bounds clocks and cores."""

    @property
    def machine(self) -> str:
        """A short digest of what latencies depend on: results of different machines must not be mixed."""
        facts = json.dumps([self.cpu, self.isa, self.cores, self.gpu, self.jetpack, *filter(None, [self.power_mode])])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    @property
    def int8_dot_product(self) -> bool:
        """Whether u8 x s8 products accumulate in int32 in one instruction (VNNI, AMX, or Arm's dot product).

        Without it AVX2 adds pairs of products in int16, which saturates: 255 * 127 * 2 > 32767.
        """
        return bool({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"} & set(self.isa))

    @property
    def bfloat16_dot_product(self) -> bool:
        """Whether products of bfloat16 are one instruction, so that computing in it is more than storing in it."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.isa))


def host() -> Host:
    """This host."""
    cpuinfo = _read("/proc/cpuinfo")
    flags = set((_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split())
    return Host(
        cpu=_field(cpuinfo, "model name") or board_model() or platform.processor() or platform.machine(),
        isa=tuple(name for name in _ISA if name in flags),
        cores=available_cores(),
        memory_gib=round(_memory_bytes() / 2**30, 1),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        gpu=_nvidia_gpu(),
        jetpack=_l4t_release(),
        power_mode=power_mode(),
    )


def available_cores() -> int:
    """Cores that this process may run on: its affinity, bounded by the container's CPU quota."""
    cores = len(usable_cpus())
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def power_mode() -> str | None:
    """A Jetson's power mode by its name; None elsewhere, or where nobody tells."""
    if not _read("/etc/nv_tegra_release"):
        return None
    try:
        told = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    named = re.search(r"NV Power Mode:\s*(\S+)", told)
    kept = re.search(r"pmode:0*(\d+)", _read("/var/lib/nvpmodel/status"))
    return named[1] if named else f"mode {kept[1]}" if kept else None


def usable_cpus() -> tuple[int, ...]:
    """The logical CPUs that this process may run on, by number."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numbers or engines, of those installed; read without importing them."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _nvidia_gpu() -> str | None:
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        return _field(_read(str(path)), "Model")
    return None


def _l4t_release() -> str | None:
    """`36.4.7` from `# R36 (release), REVISION: 4.7, …`; an unknown form is given as it stands, never an error."""
    first = _read("/etc/nv_tegra_release").partition("\n")[0]
    found = re.search(r"R(\d+).*REVISION:\s*([\d.]+)", first)
    return f"{found[1]}.{found[2]}" if found else first or None


def board_model() -> str | None:
    """What an embedded board calls itself, such as `NVIDIA Jetson Orin NX ..`; None where there is no device tree."""
    return _read("/proc/device-tree/model").rstrip("\0\n") or None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _field(text: str, key: str) -> str | None:
    found = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
