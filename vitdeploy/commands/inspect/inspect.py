"""`vitdeploy inspect`: the audit of an artifact, with the structure of its model."""

from __future__ import annotations

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit
from vitdeploy.frozen import replace
from vitdeploy.graph import structure as structures
from vitdeploy.graph.outline import outline
from vitdeploy.runtime.artifact_session import read_bundle, read_compiled


def inspect(artifact: Artifact) -> Audit:
    """Return the stored audit of an artifact, with the structure of its model.

    If no audit about this manifest is stored, it is read from the compiled file again, and stored.

    Raises:
        TargetUnavailable: the audit must be read again, and the backend is not installed here.
    """
    manifest = artifact.manifest
    audit, reason = artifact.read_evidence(Audit)
    if audit is None and manifest.stage == "bundle":
        audit = targets.audit_bundle(manifest.target.kind, read_bundle(artifact.path, manifest), artifact.digest)
    elif audit is None:
        target = targets.find(manifest.recipe.target)
        missing = target.unavailable()
        if missing is not None:
            raise TargetUnavailable(f"{reason}, and no new audit is possible here: {missing.why}", fix=missing.fix)
        bundle = read_bundle(artifact.path, manifest)
        audit = artifact.write_evidence(target.audit(bundle, read_compiled(artifact)))
    structure = outline(structures.load(artifact.file(SITES)))
    return replace(audit, files=manifest.files, structure=structure)
