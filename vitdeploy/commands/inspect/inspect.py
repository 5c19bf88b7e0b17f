"""Evidence about an artifact: the audit, and how to open it. Latency is timed in `benching`."""

from __future__ import annotations

from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy import targets
from vitdeploy.artifact.layout import SITES
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit
from vitdeploy.graph import structure as structures
from vitdeploy.graph.outline import outline
from vitdeploy.pipeline.finish import store_audit
from vitdeploy.runtime.artifact_session import compiled_of, target_bundle


def inspect(path: Path) -> Audit:
    """What the compiled thing does. The stored audit serves as long as it is about this manifest; else it is read anew.

    Raises:
        TargetUnavailable: it must be read anew and the backend is not here.
    """
    artifact = artifacts.load(path)
    audit, why = artifact.read_evidence(Audit)
    if audit is None:
        if artifact.manifest.stage == "bundle":
            bundle = target_bundle(artifact.path, artifact.manifest)
            audit = targets.audit_bundle(artifact.manifest.target.kind, bundle, artifact.digest)
        else:
            target = targets.find(artifact.manifest.recipe.target)
            missing = target.unavailable()
            if missing is not None:
                raise TargetUnavailable(f"{why}, and it cannot be read anew here: {missing.why}", fix=missing.fix)
            audit = store_audit(artifact, target.audit(target_bundle(path, artifact.manifest), compiled_of(artifact)))
    structure = outline(structures.load(path / SITES))
    return audit.model_copy(update={"files": artifact.manifest.files, "structure": structure})
