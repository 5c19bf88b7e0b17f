"""The machine, the time and the software that evidence is made with."""

from __future__ import annotations

from datetime import datetime, timezone

from vitdeploy import environment, targets
from vitdeploy.artifact import Manifest
from vitdeploy.evidence import Provenance

_LIBRARIES = ("vitdeploy", "numpy")


def list_reference_libraries(reference: str) -> tuple[str, ...]:
    """Return the libraries, of which one is installed, that run a reference of this name, such as `pytorch-fp32`."""
    engine = reference.partition("-")[0]
    if engine in ("pytorch", "torch"):
        return ("torch",)
    return ("onnxruntime", "onnxruntime-gpu") if engine == "onnxruntime" else (engine,)


def describe_provenance(manifest: Manifest, threads: int | None, *libraries: str) -> Provenance:
    """Return the provenance of evidence that is made now, on this machine, with the engine installed here.

    Args:
        manifest: of the artifact that the evidence is about.
        threads: the number of threads; None if the engine does not have them.
        libraries: further libraries that the figures depend on. A device has fewer than the manifest names.
    """
    host, target = environment.host(), targets.find(manifest.recipe.target)
    names = (*_LIBRARIES, target.name, *libraries)
    return Provenance(
        machine=host.machine,
        hardware=host.hardware,
        engine=target.installed_engine(),
        versions={name: version for name, version in environment.library_versions().items() if name in names},
        threads=threads,
        date=datetime.now(timezone.utc).date().isoformat(),
        recipe=manifest.recipe_digest,
    )
