"""Point 6: whatever is changed in evidence or manifest, the gate does not crash, and passes nothing impossible.

Every name, number, text and list in the JSON of a real artifact may be changed. A change passes only where nothing else
says what was changed (`FREE`), or where the gate has read the audit anew from the compiled file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.evidence import timed_bench
from tests.robustness.mutations import Path as Place
from tests.robustness.mutations import get, put
from vitdeploy import artifact as artifacts
from vitdeploy.artifact import MANIFEST, Artifact
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.commands.gate import gate as gating
from vitdeploy.errors import VitdeployError
from vitdeploy.progress import Silent

LIMITS = {"max_drop_pp": 2.0, "min_speedup": 1.0, "min_fused_pct": 100.0}
EVIDENCE = ("audit.json", "bench.json", "eval.json")
COUNT = int(os.environ.get("VITDEPLOY_MUTATIONS", "100"))
"""Changes of each file; `make fuzz` tries thousands."""

FREE = re.compile(
    r"(?:.*provenance\.(?:versions|threads|date).*"
    r"|audit\.json:(?:layernorm\.fused|attention\.kernels.*|layers|stored.*|doubts|engine.*|files|structure|sensitivity"
    r"|model_precision)"
    r"|bench\.json:(?:seconds|stopped|pinned|cpus.*|power.*|device.*|roofline.*|profiles.*|conditions.*|scenario)"
    r"|bench\.json:runs(?:\.#(?:\.(?:threads|effective.*|finite|warm_up.*|startup.*|size_bytes|floor_ms|efficiency_pct"
    r"|role))?)?"
    r"|bench\.json:(?:pairs|machine|manifest|doubts)"
    r"|eval\.json:(?:available|data|data_digest|skipped|limit|test|doubts|provenance|provenance\.machine"
    r"|metrics|metrics\.top5|metrics\.top\d\.better|flipped.*))"
)
"""Facts that no other evidence has: notes, costs beside latency, versions of libraries that did not run."""


@pytest.fixture(scope="module")
def sealed(demo: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    source = demo(target="onnxruntime", precision="int8")
    made = artifacts.load(Path(shutil.copytree(source.path, tmp_path_factory.mktemp("mutated") / "digits")))
    evaluate(made, None, Silent(), limit=300)
    made.write_evidence(timed_bench(made, 3.0, noise=0.3))
    assert gating.gate(made, LIMITS, Silent()).verdict == "pass"
    return made


@pytest.mark.parametrize("name", [*EVIDENCE, MANIFEST])
def test_no_change_makes_impossible_evidence_pass(name: str, sealed: Artifact, tmp_path: Path) -> None:
    generator = random.Random(f"{name} 6")
    folder = Path(shutil.copytree(sealed.path, tmp_path / "digits"))
    original = json.loads((sealed.path / name).read_text())
    verdicts: dict[str, int] = defaultdict(int)
    passed = []
    for _ in range(COUNT):
        pattern, path = choose_place(original, generator)
        before = get(original, path)
        after = change(before, generator)
        facts = put(original, path, after)
        write(folder, sealed, name, facts)
        try:
            gate = gating.gate(artifacts.load(folder), LIMITS, Silent())
        except VitdeployError:
            verdicts["refused"] += 1
            continue
        verdicts[gate.verdict] += 1
        if gate.verdict == "pass" and not may_pass(f"{name}:{pattern}", after, folder, facts):
            passed.append((pattern, before, after))
    assert passed == []
    assert verdicts["invalid"] + verdicts["refused"] + verdicts["fail"] > COUNT // 8, verdicts


def may_pass(place: str, after: object, folder: Path, facts: object) -> bool:
    """Return True if a change contradicts nothing, or was replaced by a new audit."""
    name = place.partition(":")[0]
    if name == "audit.json" and json.loads((folder / name).read_text()) != facts:
        return True
    if isinstance(after, float) and not math.isfinite(after):
        return False
    return name == MANIFEST or FREE.fullmatch(place) is not None or isinstance(after, dict)


def choose_place(facts: Any, generator: random.Random) -> tuple[str, Place]:
    """Choose among the names first, so that thousands of samples are not all that is changed."""
    places: dict[str, list[Place]] = defaultdict(list)
    for path in list_places(facts):
        places[re.sub(r"\.\d+(?=\.|$)", ".#", ".".join(map(str, path)))].append(path)
    pattern = generator.choice(sorted(places))
    return pattern, generator.choice(places[pattern])


def list_places(value: Any, path: Place = ()) -> Iterator[Place]:
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from list_places(part, (*path, key))


def change(value: Any, generator: random.Random) -> Any:
    """Return another value in place of this one: of its type, or of another."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        others = [math.nan, math.inf, -math.inf, -value - 1, value + 1, 1.5 * value + 1e-3, 1e300, value + 0.001, "x"]
    elif isinstance(value, str):
        others = [f"{value}x", "", value[1:], "0" * 64, 7, None, "\x1b[31m"]
    elif isinstance(value, list):
        others = [[], value + value, value[1:], value[::-1], [*value, "x"], {}]
    elif isinstance(value, dict):
        others = [{}, [], dict(list(value.items())[1:])]
    else:
        others = [0, -1, "x", [], 1.5]
    return generator.choice([other for other in others if other != value])


def write(folder: Path, sealed: Artifact, name: str, facts: object) -> None:
    """Put a changed file into the folder. Evidence about a changed manifest is changed to be about it."""
    text = json.dumps(facts)
    (folder / name).write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest() if name == MANIFEST else sealed.digest
    for other in {*EVIDENCE} - {name}:
        (folder / other).write_text((sealed.path / other).read_text().replace(sealed.digest, digest))
