"""Changed evidence and manifests: nothing crashes, and nothing impossible passes.

Three kinds of change, each in one place of one file:

- evidence: a verdict that was `fail` or `invalid` never becomes `pass`, and `pass` stays only for evidence that
  `oracle` finds possible.
- manifest: the evidence is about another manifest then, so the verdict is never `pass`.
- manifest with evidence about it: whoever changes both can write anything that is possible, so here only crashes and
  contradictions count.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path

from tests.robustness import made
from tests.robustness.cases import FINE, IMPOSSIBLE, Judged
from tests.robustness.mutations import mutate_bytes, mutate_json
from tests.robustness.oracle import find_contradictions

_EVIDENCE = ("audit.json", "bench.json", "eval.json")
_MANIFEST = "manifest.json"


class Evidence:
    """The gate's input."""

    name = "evidence"
    seconds = 60.0
    mebibytes = 256

    def prepare(self, folder: Path) -> None:
        """Make an artifact whose evidence passes, and limits that it passes, fails or cannot decide."""
        self._artifact = made.export_tiny(folder)
        made.add_evidence(self._artifact, folder / "images.npz")
        files = [p for p in self._artifact.iterdir() if p.is_file() and p.name not in ("graph.onnx", "report.html")]
        self._files = {path.name: path.read_bytes() for path in files}
        runs = json.loads(self._files["bench.json"])["runs"]
        low, high = next(run["speedup"]["ci95"] for run in runs if run["role"] == "artifact")
        good = {"max_drop_pp": 60.0, "min_fused_pct": 100.0, "min_speedup": round(0.8 * low, 3)}
        self._limits = {
            "pass": good,
            "fail": good | {"min_speedup": round(3 * high, 3)},
            "invalid": good | {"max_drop_pp": 0.5},
        }
        for verdict, limits in self._limits.items():
            if (found := self._gate(limits, folder)) != verdict:
                raise RuntimeError(f"the evidence as it was measured is {found}, not {verdict}, by {limits}")
        if problems := find_contradictions(self._parse(), good):
            raise RuntimeError(f"the oracle refuses evidence as it was measured: {problems}")

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Change one place, and judge the artifact by one of the limits."""
        name = rng.choice([*_EVIDENCE, *_EVIDENCE, *sorted(set(self._files) - {"gate.json"}), _MANIFEST])
        kept = rng.choice(sorted(self._limits))
        is_json = name.endswith(".json")
        content, what = (mutate_json if is_json else mutate_bytes)(self._files[name], rng)
        follows = name == _MANIFEST and rng.random() < 0.5
        try:
            (self._artifact / name).write_bytes(content)
            if follows:
                self._follow(content)
            verdict = self._gate(self._limits[kept], folder)
            impossible = find_contradictions(self._parse(), self._limits[kept])
        finally:
            self._restore()
        what = f"{name} (limits to {kept}): {what}"
        same = _equal(content, self._files[name], is_json)
        if verdict == "pass" and not same:
            if name == _MANIFEST and not follows:
                return Judged(IMPOSSIBLE, f"{what}; the evidence is about another manifest")
            if kept != "pass" and not follows:
                return Judged(IMPOSSIBLE, f"{what}; it was {kept}")
            if impossible:
                return Judged(IMPOSSIBLE, f"{what}; {impossible[0]}")
        return Judged(FINE, f"{what}; {verdict}")

    def _gate(self, limits: Mapping[str, float], folder: Path) -> str:
        from vitdeploy import artifact as artifacts
        from vitdeploy.commands.gate.gate import gate
        from vitdeploy.progress import Silent

        loaded = artifacts.load(self._artifact)
        files = {"junit_file": folder / "junit.xml", "markdown_file": folder / "summary.md"}
        return gate(loaded, limits, Silent(), **files).verdict

    def _parse(self) -> dict[str, object]:
        parsed: dict[str, object] = {}
        for name in _EVIDENCE:
            try:
                parsed[name.removesuffix(".json")] = json.loads((self._artifact / name).read_bytes())
            except (OSError, ValueError, RecursionError):
                parsed[name.removesuffix(".json")] = None
        return parsed

    def _follow(self, manifest: bytes) -> None:
        """Make the evidence be about the changed manifest."""
        digest = hashlib.sha256(manifest).hexdigest().encode()
        before = hashlib.sha256(self._files[_MANIFEST]).hexdigest().encode()
        for name in _EVIDENCE:
            (self._artifact / name).write_bytes(self._files[name].replace(before, digest))

    def _restore(self) -> None:
        for path in self._artifact.iterdir():
            if path.is_file() and path.name not in self._files and path.name != "graph.onnx":
                path.unlink()
        for name, content in self._files.items():
            if (self._artifact / name).read_bytes() != content:
                (self._artifact / name).write_bytes(content)


def _equal(content: bytes, original: bytes, is_json: bool) -> bool:
    """Return True if nothing was changed but the form: `1.0` for `1`, blanks, the order of keys."""
    if content == original or not is_json:
        return content == original
    try:
        return bool(json.loads(content) == json.loads(original))
    except (ValueError, RecursionError):
        return False
