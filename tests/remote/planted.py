"""Planted faults over `--host`: the cases, and how what came back is judged.

A case has one fault of the compiler on the board, the block that has it, and the first safe form in which the fault's
pattern is gone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.cli.conftest import run
from tests.fakes.miscompile import HALF, Fault
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import Artifact
from vitdeploy.evidence import Audit

WRONG = "computes other numbers than"
_LOCATED = re.compile(r"(.+?) is the first that is off")
_HALF = frozenset({HALF})


@dataclass(frozen=True)
class Case:
    """A fault in a model of `tests.toys.vits`.

    Attributes:
        model: the name of the model.
        fault: the fault; None: the board is healthy.
        block: the name of the block that has it.
        form: the first safe form in which the fault's pattern is gone.
        form_of_10: the same for TensorRT 10, if a public report about it puts another form first.
    """

    model: str
    fault: Fault | None = None
    block: str = ""
    form: str = ""
    form_of_10: str = ""

    def expect(self, release: str) -> Outcome:
        """The outcome with a version if the fault is noticed, located and repaired."""
        preferred = PREFERRED.get((self.model, release), "")
        if preferred and self.form in ("", preferred):  # the plain form is not built
            return Outcome(noticed=False, located="", form=preferred, sound=True, missing=())
        form = self.form_of_10 if self.form_of_10 and release.startswith("10.") else self.form
        is_off = self.fault is not None
        return Outcome(noticed=is_off, located=self.block, form=form, sound=True, missing=())


CASES = (
    Case("deit", Fault("mixed_heads", within="blocks.1"), "blocks.1", "separate-qkv"),
    Case("deit", Fault("block_off", within="blocks.2", types=_HALF), "blocks.2", "fp32-block-2"),
    Case("deit", Fault("block_off", within="blocks.1", size=0.05, least_level=3), "blocks.1", "level-2"),
    Case("rope", Fault("wrong_rotation"), "blocks.0", "baked-positions"),
    Case("rope", Fault("overflow", within="blocks.1", size=0.3), "blocks.1", "fp32-scores"),
    Case("swin", Fault("mixed_heads", within="layers.1.blocks.0"), "layers.1.blocks.0", "separate-qkv"),
    Case("swin", Fault("block_off", within="layers.0.blocks.1", size=0.1, types=_HALF), "layers.0.blocks.1",
         "fp32-block-1"),
    Case("detector", Fault("mixed_heads", within="model.features.1"), "model.features.1", "separate-qkv"),
    Case("detector", Fault("shifted_memory", within="model.decoding.0", types=_HALF), "model (part 3)", "fp32-scores",
         form_of_10="fp32"),
)  # fmt: skip
"""In the detector the decoder is a part of its own, behind the blocks."""
PREFERRED = {("rope", "10.3"): "baked-positions"}
"""The safe form that is built in the place of the plain form of a model, by a public report about the version."""
CUT = CASES[1]
"""A case with many builds, for a cut in their middle."""


@dataclass(frozen=True)
class Outcome:
    """The result of a compile over `--host`.

    Attributes:
        noticed: the plain engine is said to be wrong.
        located: the name of the block that is said to be off.
        form: the safe form that holds parity; empty if none does, or none was tried.
        sound: the artifact holds parity, and no doubt is left.
        missing: what did not come back.
    """

    noticed: bool
    located: str
    form: str
    sound: bool
    missing: tuple[str, ...]

    def as_row(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return asdict(self)


def read_outcome(folder: Path, summary: Mapping[str, Any]) -> Outcome:
    """Read what came back: the artifact, and the summary that was printed."""
    artifact = artifacts.load(folder)  # every file has its sha256
    manifest = artifact.manifest
    held = [trial.form for trial in manifest.trials if trial.form and WRONG not in trial.why]
    located = _LOCATED.match(manifest.trials[0].located)
    parity = manifest.device_parity
    return Outcome(
        noticed=WRONG in manifest.trials[0].why,
        located=located[1] if located else "",
        form=held[0] if held else "",
        sound=parity is not None and parity.cosine > 0.99 and not manifest.doubts,
        missing=tuple(_list_missing(artifact, summary, held)),
    )


def _list_missing(artifact: Artifact, summary: Mapping[str, Any], words: list[str]) -> list[str]:
    manifest = artifact.manifest
    kept = [trial for trial in manifest.trials if trial.kept]
    names = [variant.name for variant in manifest.variants if kept and _is_of(variant, kept[0])]
    audit, _ = artifact.read_evidence(Audit)
    page = artifact.path.with_suffix(".html")
    ended = run("report", artifact.path, "-o", page)
    text = page.read_text(encoding="utf-8") if ended.code == 0 else ""
    present = {
        "the engine": manifest.stage == "artifact" and artifact.file(manifest.runs or "none").is_file(),
        "the note": not manifest.trials[0].located or f"located: {manifest.trials[0].located}" in summary["notes"],
        "the trials": [trial.model_dump(mode="json") for trial in manifest.trials] == summary["trials"],
        "the one that was kept": names == [manifest.variant],
        "the audit": audit is not None and audit.attention.evidence == "compiled" and audit.manifest == artifact.digest,
        "the report": text and all(word in text for word in words),
    }
    return [name for name, is_there in present.items() if not is_there]


def _is_of(variant: Any, trial: Any) -> bool:
    return (variant.precision, variant.form) == (trial.precision, trial.form)
