"""The fingerprint of this host: the facts that measurements and engines depend on, read without any heavy library."""

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

from vitdeploy.version import __version__

LIBRARIES = (
    "numpy", "torch", "torchvision", "timm", "transformers", "onnx", "onnx-ir", "onnxscript",
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-nv-tensorrt-rtx-cu12", "onnxruntime-ep-nv-tensorrt-rtx-cu13",
    "openvino", "nncf", "tensorrt", "tensorrt-rtx",
)  # fmt: skip
"""Distributions whose versions decide numbers or engines. The manifest names the installed ones."""

# The instruction sets that decide which INT8 and half-precision kernels a CPU runs.
_ISA = (
    "avx2", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "amx_fp16", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve",
)  # fmt: skip


class Host(BaseModel):
    """The facts about a host that speed and engines depend on. `cores` are those that this process may use."""

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
    """Of a Jetson, such as MAXN_SUPER. It limits clocks and cores."""

    @property
    def machine(self) -> str:
        """A short digest of the facts that latencies depend on. Results of different machines must not be mixed."""
        facts = json.dumps([self.cpu, self.isa, self.cores, self.gpu, self.jetpack, *filter(None, [self.power_mode])])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    @property
    def hardware(self) -> str:
        """A short digest of the facts that stay the same when cores or the power mode of a machine are limited."""
        facts = json.dumps([self.cpu, self.isa, self.gpu, self.jetpack])
        return hashlib.sha256(facts.encode()).hexdigest()[:12]

    @property
    def int8_dot_product(self) -> bool:
        """True if one instruction adds u8 x s8 products in int32 (VNNI, AMX, or Arm's dot product).

        Without it AVX2 adds pairs of products in int16, which saturates: 255 * 127 * 2 > 32767.
        """
        return bool({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp"} & set(self.isa))

    @property
    def int8_products_on_x86(self) -> bool:
        """True if it is an x86 CPU with INT8 dot products, for which OpenVINO has an attention kernel in INT8."""
        return self.int8_dot_product and "asimddp" not in self.isa

    @property
    def bfloat16_dot_product(self) -> bool:
        """True if one instruction multiplies bfloat16, so that it is not only a storage format."""
        return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(self.isa))


def host() -> Host:
    """Read the facts about this host."""
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
        jetpack=l4t_release(),
        power_mode=power_mode(),
    )


def available_cores() -> int:
    """Count the cores that this process may use: its affinity, limited by the container's CPU quota."""
    cores = len(usable_cpus())
    quota = _read("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdigit():
        cores = min(cores, max(1, int(quota[0]) // int(quota[1])))
    return cores


def power_mode() -> str | None:
    """Return the name of a Jetson's power mode; None on other machines, or when it cannot be read."""
    if not _read("/etc/nv_tegra_release"):
        return None
    try:
        output = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        output = ""
    name = re.search(r"NV Power Mode:\s*(\S+)", output)
    number = re.search(r"pmode:0*(\d+)", _read("/var/lib/nvpmodel/status"))
    return name[1] if name else f"mode {number[1]}" if number else None


def usable_cpus() -> tuple[int, ...]:
    """List the numbers of the logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def digest_code(folder: Path) -> str:
    """Return the digest of the Python files in a folder: two checkouts of one version may differ."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        code = path.read_bytes()
        sha.update(f"{path.relative_to(folder).as_posix()}\n{len(code)}\n".encode())
        sha.update(code)
    return sha.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of vitdeploy and of the installed `LIBRARIES`, without importing them."""
    versions = {"vitdeploy": __version__}
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


def l4t_release() -> str | None:
    """`36.4.7` from `# R36 (release), REVISION: 4.7, …`; a line in another form is returned unchanged."""
    line = _read("/etc/nv_tegra_release").partition("\n")[0]
    release = re.search(r"R(\d+).*REVISION:\s*([\d.]+)", line)
    return f"{release[1]}.{release[2]}" if release else line or None


def board_model() -> str | None:
    """Return the name of an embedded board, such as `NVIDIA Jetson Orin NX ..`; None without a device tree."""
    return _read("/proc/device-tree/model").rstrip("\0\n") or None


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def _field(text: str, key: str) -> str | None:
    value = re.search(rf"^{re.escape(key)}\s*:\s*(.+)$", text, re.MULTILINE)
    return value[1].strip() if value else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
