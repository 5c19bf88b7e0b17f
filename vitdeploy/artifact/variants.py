"""The variants of a bundle: find and select one, and start its trial."""

from __future__ import annotations

import shutil
from pathlib import Path

from vitdeploy.artifact.layout import GRAPH, SITES, variant_graph, variant_sites
from vitdeploy.artifact.manifest import Manifest, Trial, Variant
from vitdeploy.errors import UsageError
from vitdeploy.frozen import replace


def find_variant(manifest: Manifest, name: str) -> Variant:
    """Return the variant of this name.

    Raises:
        UsageError: there is none.
    """
    for variant in manifest.variants:
        if variant.name == name:
            return variant
    if not manifest.variants:
        raise UsageError(f"there is no variant {name}: this bundle has one graph only", fix="Leave out --variant.")
    names = ", ".join(variant.name for variant in manifest.variants)
    raise UsageError(f"there is no variant {name}", fix=f"Give one of {names}.")


def select_variant(manifest: Manifest, name: str) -> Manifest:
    """Return the manifest with the facts of a variant in place of those of the selected one.

    Raises:
        UsageError: there is no such variant.
    """
    variant = find_variant(manifest, name)
    current = next((other for other in manifest.variants if other.name == manifest.variant), None)
    shared = len(manifest.passes) - (len(current.passes) if current is not None else 0)
    return replace(
        manifest,
        variant=name,
        passes=(*manifest.passes[: max(0, shared)], *variant.passes),
        quantized=variant.quantized,
        placement=variant.placement,
        graph_parity=variant.graph_parity,
        inputs=variant.inputs,
        outputs=variant.outputs,
        target=replace(manifest.target, precision=variant.precision),
    )


def place_variant(bundle: Path, variant: Variant) -> None:
    """Make a variant's graph and sites those of the bundle itself."""
    name = variant.files
    for source, target in ((variant_graph(name), GRAPH), (variant_sites(name), SITES)):
        shutil.copyfile(bundle / source, bundle / target)


def start_trial(variant: Variant) -> Trial:
    """Return the trial of a variant of which nothing was measured yet."""
    trial, record = Trial(precision=variant.precision, form=variant.form), variant.quantized
    if record is None:
        return trial
    return replace(
        trial, quantizer=record.quantizer, attention=record.attention_operands, folded_norms=record.folded_norms
    )
