"""Rows of the zoo, and the file that keeps them: each finished row is one line, and its stamp says what made it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from vitdeploy import environment

RESULTS = Path(__file__).with_name("rows.jsonl")
TARGETS = {"openvino": "fp32", "onnxruntime": "fp32", "tensorrt-rtx": "fp16"}
"""Each target with its precision beside INT8."""
ROUTES: dict[str, int | None] = {"module": None, "onnx 17": 17, "onnx 14": 14}
"""The form in which vitdeploy gets the model, and the opset if that is a file."""
INT8_TARGETS = ("openvino", "onnxruntime")
LARGEST_RELATIVE_DIFFERENCE = 1e-4  # float32, of the largest reference value
_ROOT = Path(__file__).parents[2]
_DIGEST = 12


class Case(NamedTuple):
    """A row to make."""

    model: str
    route: str
    target: str
    precision: str


@dataclass(frozen=True)
class Row:
    """One model in one form, on one target, in one precision.

    Attributes:
        error: the reason why there is no artifact; the figures are then None.
        attentions: the attentions that were counted while the model ran.
        sites: the attentions that vitdeploy recognised.
        unfused: reason -> number of sites.
        difference: the largest one to the reference, relative to its largest value.
        unfused_norms: reason -> number of LayerNorms.
        weights_pct: percent of the weights that are quantized.
        outside: rule -> percent of the products with weights that it keeps in float.
        stamp: the digest of what it was made with.
    """

    model: str
    route: str
    target: str
    precision: str
    seconds: float
    attentions: int | None = None
    error: str = ""
    sites: int | None = None
    raised: int | None = None
    fused: int | None = None
    unfused: Mapping[str, int] = field(default_factory=dict)
    difference: float | None = None
    norms: int | None = None
    norms_fused: int | None = None
    unfused_norms: Mapping[str, int] = field(default_factory=dict)
    weights_pct: float | None = None
    outside: Mapping[str, float] = field(default_factory=dict)
    exporter: str = ""
    stamp: str = ""

    @property
    def case(self) -> Case:
        """Return what identifies the row."""
        return Case(self.model, self.route, self.target, self.precision)

    @property
    def problems(self) -> list[str]:
        """Return what is not as it should be, without attentions that are not fused, which have reasons."""
        problems = []
        if self.sites is not None and self.sites != self.attentions:
            problems.append(f"{self.sites} sites instead of {self.attentions}")
        if self.difference is not None and self.precision == "fp32" and not self.is_exact:
            problems.append(f"differs by {self.difference:.0e}")
        return problems

    @property
    def is_exact(self) -> bool:
        """Return True if a float32 model's numbers are the reference's; NaN is not."""
        return self.difference is not None and self.difference <= LARGEST_RELATIVE_DIFFERENCE


def list_cases(models: Iterable[str]) -> list[Case]:
    """Return all rows of these models, model by model, INT8 behind float."""
    return [
        case
        for model in models
        for case in (
            *(Case(model, route, target, TARGETS[target]) for route in ROUTES for target in TARGETS),
            *(Case(model, "module", target, "int8") for target in INT8_TARGETS),
        )
    ]


def make_stamp() -> dict[str, Any]:
    """Return what decides a row: the tree of the package, the CPU, and the versions of the libraries."""
    host = environment.host()
    return {
        "package": find_package_tree(),
        "cpu": host.cpu,
        "isa": list(host.isa),
        "threads": host.cores,
        "versions": environment.library_versions(),
    }


def digest_stamp(stamp: Mapping[str, Any]) -> str:
    """Return the short name of a stamp."""
    return hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest()[:_DIGEST]


def find_package_tree() -> str:
    """Return git's id of the folder `vitdeploy/` as it is now, changes that are not committed included."""
    with tempfile.TemporaryDirectory() as folder:
        index = {**os.environ, "GIT_INDEX_FILE": str(Path(folder) / "index")}

        def git(*words: str) -> str:
            return subprocess.run(
                ["git", *words], cwd=_ROOT, env=index, check=True, capture_output=True, text=True
            ).stdout.strip()

        git("read-tree", "HEAD")
        git("add", "--all", "vitdeploy")
        return git("write-tree", "--prefix=vitdeploy/")


class Store:
    """The rows in a file of JSON lines, to which rows are appended. The last row of a case is the one that counts."""

    def __init__(self, path: Path = RESULTS) -> None:
        """Read what is there. A line that an interrupt cut off is dropped."""
        self.path = path
        self._lock = FileLock(path.with_suffix(".lock"))
        self.stamps: dict[str, dict[str, Any]] = {}
        self.rows: dict[Case, Row] = {}
        self._read()

    def _read(self) -> None:
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []:
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "versions" in entry:
                self.stamps[digest_stamp(entry)] = entry
            else:
                self._put(Row(**entry))

    def add(self, row: Row, stamp: Mapping[str, Any]) -> None:
        """Append a row that was made with `row.stamp`, and the stamp if it is new."""
        lines = [] if row.stamp in self.stamps else [dict(stamp)]
        self.stamps.setdefault(row.stamp, dict(stamp))
        self._put(row)
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(entry) for entry in (*lines, asdict(row)))

    def compact(self, order: Iterable[Case]) -> None:
        """Write the file again, without rows that count no longer, and without cases that are not in `order`.

        Rows that another process has added to it since it was read stay.
        """
        with self._lock:
            self._read()
            self._write(order)

    def _write(self, order: Iterable[Case]) -> None:
        self.rows = {case: self.rows[case] for case in order if case in self.rows}
        used = {row.stamp for row in self.rows.values()}
        self.stamps = {name: stamp for name, stamp in self.stamps.items() if name in used}
        beside = self.path.with_suffix(".new")
        entries = [*self.stamps.values(), *map(asdict, self.rows.values())]
        beside.write_text("".join(map(_line, entries)), encoding="utf-8")
        beside.replace(self.path)

    def _put(self, row: Row) -> None:
        self.rows[row.case] = row


def _line(entry: Mapping[str, Any]) -> str:
    filled = {key: value for key, value in entry.items() if value not in (None, "", {})}
    return json.dumps(filled, ensure_ascii=False) + "\n"
