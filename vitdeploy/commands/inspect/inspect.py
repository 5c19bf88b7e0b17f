"""`vitdeploy inspect`: the audit of an artifact, with the structure of its model."""

from __future__ import annotations

import dataclasses

from vitdeploy import environment, targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import SITES
from vitdeploy.errors import TargetUnavailable
from vitdeploy.evidence import Audit, Bench, Eval
from vitdeploy.frozen import replace
from vitdeploy.graph import structure as structures
from vitdeploy.graph.outline import outline
from vitdeploy.graph.structure import AttentionSite
from vitdeploy.runtime.artifact_session import read_bundle, read_compiled
from vitdeploy.runtime.provenance import describe_provenance


def inspect(artifact: Artifact, *, store: bool = True) -> Audit:
    """Return the stored audit of an artifact, with the structure of its model.

    It repeats the manifest's doubts about the numbers of what was compiled. If no audit about this manifest is stored,
    it is read from the compiled file again, and stored. So it is on another CPU, or with another version of the engine,
    unless other evidence beside the artifact agrees with the stored audit.

    Args:
        artifact: the artifact or bundle.
        store: False: an audit that is read again is not stored, so that a signed folder stays as it was signed.

    Raises:
        TargetUnavailable: the audit must be read again, and the backend is not installed here.
    """
    manifest = artifact.manifest
    audit, reason = artifact.read_evidence(Audit)
    if audit is not None and _is_of_elsewhere(artifact, audit):
        audit = None
    if audit is None and manifest.stage == "bundle":
        audit = targets.audit_bundle(manifest.target.kind, read_bundle(artifact.path, manifest), artifact.digest)
    elif audit is None:
        target = targets.find(manifest.recipe.target)
        missing = target.unavailable()
        if missing is not None:
            raise TargetUnavailable(f"{reason}, and no new audit is possible here: {missing.why}", fix=missing.fix)
        bundle = read_bundle(artifact.path, manifest)
        engine = target.installed_engine() if target.runs_on == "cpu" else ""
        compiled = read_compiled(artifact)
        audit = target.audit(bundle, dataclasses.replace(compiled, backend=engine or compiled.backend))
        audit = replace(audit, provenance=describe_provenance(manifest, audit.threads), manifest=artifact.digest)
        audit = artifact.write_evidence(audit) if store else audit
    sites = structures.load(artifact.file(SITES))
    doubts = (*manifest.doubts, *(doubt for doubt in audit.doubts if doubt not in manifest.doubts))
    return replace(
        audit, files=manifest.files, structure=outline(sites), doubts=doubts, pixels=manifest.pixels,
        model_precision=manifest.model.precision, tokens=tuple(map(_count_tokens, sites.attention)),
    )  # fmt: skip


def _count_tokens(site: AttentionSite) -> int | None:
    """Return the tokens of all windows of a block: its queries or keys, whichever are more; None if not known."""
    if site.tokens is None or site.key_tokens is None:
        return None
    return max(site.tokens, site.key_tokens) * (site.windows or 1)


def _is_of_elsewhere(artifact: Artifact, audit: Audit) -> bool:
    """Return True if a stored audit is of another CPU or engine than there is here, and no other evidence is of those.

    An engine that compiles for the CPU on which it runs fuses by its version and by the CPU. The audit of another
    engine is about its compiled file, and is the same everywhere.
    """
    target = targets.find(artifact.manifest.recipe.target)
    if artifact.manifest.stage != "artifact" or target.runs_on != "cpu":
        return False
    stored = None
    if audit.provenance is not None:
        contradicts = audit.backend != audit.provenance.engine
        stored = audit.provenance.hardware, "" if contradicts else audit.backend
    hardware, version = environment.host().hardware, environment.library_versions().get(target.name)
    if stored == (hardware, f"{target.name} {version}") or target.unavailable() is not None:  # the engine is not loaded
        return False
    here = hardware, target.installed_engine()
    if stored == here:
        return False
    others = [e.provenance for e in (artifact.read_evidence(kind)[0] for kind in (Bench, Eval)) if e is not None]
    origins = {(origin.hardware, origin.engine) for origin in others if origin is not None}
    if stored is None:  # an older vitdeploy did not say
        return here in origins
    return stored not in origins
