"""`vitdeploy debug` on a device: compare an engine with the values that its bundle brought."""

from __future__ import annotations

from importlib.util import find_spec

from vitdeploy import targets
from vitdeploy.artifact import Artifact
from vitdeploy.artifact.layout import BLOCKS, EXAMPLE
from vitdeploy.artifact.temporary import scratch_folder
from vitdeploy.evidence import Divergence
from vitdeploy.measure import deviation
from vitdeploy.pipeline.block_values import load_block_values
from vitdeploy.pipeline.examples import load_examples
from vitdeploy.pipeline.locate import locate
from vitdeploy.progress import Progress
from vitdeploy.runtime.artifact_session import read_bundle, read_compiled

_STORED = "the stored example"
_NEEDED = ("torch", "onnx")


def debug_on_device(artifact: Artifact, data: str | None, progress: Progress) -> Divergence | None:
    """Compare an engine with the stored values; None if it does not run here, or FP32 can compute on `data`.

    Args:
        artifact: the artifact.
        data: the images that the user names; None leaves the choice open.
        progress: gets the steps and warnings.

    Raises:
        VitdeployError: the stored values are damaged, or the engine does not build with them as outputs.
    """
    manifest = artifact.manifest
    target = targets.find(manifest.recipe.target)
    if manifest.stage == "bundle" or not target.watches_alone or target.cannot_run() is not None:
        return None
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if data is not None and not missing:
        return None
    values = load_block_values(artifact.path / BLOCKS)
    if values is None:
        return None
    if data is not None:
        progress.warn(f"{data} is not used: without {' and '.join(missing)} FP32 cannot run on it here")
    example = load_examples(artifact.path / EXAMPLE, manifest.preprocess, manifest.recipe.target.input)[0]
    bundle = read_bundle(artifact.path, manifest)
    with scratch_folder("debug") as work:
        located = locate(target, bundle, read_compiled(artifact), values, example, work, progress)
    return Divergence(
        target=target.name,
        precision=manifest.target.precision,
        block=located.block,
        layer=located.group,
        why=located.why,
        rule=deviation.RULE,
        blocks=located.blocks,
        layers=located.groups,
        images=located.images,
        data=_STORED,
        evidence=located.evidence,
        how=located.how,
        notes=located.notes,
    )
