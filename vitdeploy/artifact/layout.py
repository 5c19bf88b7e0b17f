"""The names of the files in an artifact folder."""

from __future__ import annotations

import re

MANIFEST = "manifest.json"
FAMILY = "family.json"
"""In a folder with an artifact for each part of a model."""
RECORDING = "recording.json"
"""In a folder that `vitdeploy doctor --record` has written."""
PAIR_EXAMPLES = "examples.npz"
"""In a family: images and prompts with the answers of the whole model."""
GRAPH = "graph.onnx"
"""The graph that the compiler reads. Large weights are beside it, in files whose names begin with this one."""
SITES = "sites.json"
WEIGHTS = f"{GRAPH}.data"
"""The large tensors of the graph. All variants of a bundle share them."""
REFERENCE_FOLDER = "reference/"
"""Outputs of the float32 reference, for devices that cannot run it."""
EXAMPLE = f"{REFERENCE_FOLDER}example.npz"
BLOCKS = f"{REFERENCE_FOLDER}blocks.npz"
"""Values inside the model for one example, by which a device finds the place of an error."""
JUDGE = f"{REFERENCE_FOLDER}judge.npz"
"""Images with the answers of the float32 reference, by which a device judges the variants of a bundle."""
EVIDENCE = (
    "audit.json", "bench.json", "eval.json", "gate.json", "release.json", "sensitivity.json", "streams.json",
)  # fmt: skip
"""Evidence about the artifact. The manifest does not list these files."""
SAMPLES = "eval.samples.npz"
"""The outcome of every sample that `eval.json` is about."""
FLIPS = "eval.flips.npz"
"""Small pictures of the samples to which the two sides of `eval.json` give different answers."""
RELEASE_SAMPLES = "release.samples.npz"
"""The outcome of every sample that `release.json` is about."""
RAW = (SAMPLES, FLIPS, RELEASE_SAMPLES)
"""Raw data beside the evidence. A piece of evidence names the sha256 of its own."""
REPORT = "report.html"
MODEL_SIGNATURE = "signature.json"
"""The signature of the files that never change after export, in the format of OpenSSF model-signing."""
ATTESTATION = "attestation.json"
"""The signed statement about the evidence and the verdict."""
SIGNATURES = (MODEL_SIGNATURE, ATTESTATION, "manifest.json.sig", "manifest.json.sigstore.json")
"""The names of signatures. The last two are kept free for tools that sign the manifest alone."""
BESIDE = (*EVIDENCE, *RAW, REPORT, *SIGNATURES)
"""Files that the manifest does not list, because they may change after export."""

VARIANT_NAME = r"[a-z0-9]+(-[a-z0-9]+)*"
"""The name of a variant, which is part of file names: such as `fp16-separate-qkv`."""
_OF_VARIANT = re.compile(rf"graph\.{VARIANT_NAME}\.onnx|sites\.{VARIANT_NAME}\.json")


def variant_graph(name: str) -> str:
    """Return the name of a variant's graph. It is beside `GRAPH`, because external data may not point upwards."""
    return f"graph.{name}.onnx"


def variant_sites(name: str) -> str:
    """Return the name of the file with a variant's sites."""
    return f"sites.{name}.json"


def is_of_variant(name: str) -> bool:
    """Return True for the graph or the sites of a variant."""
    return _OF_VARIANT.fullmatch(name) is not None


def is_in_bundle(name: str) -> bool:
    """Return True if a file belongs to the bundle, from which another machine can compile."""
    return name == SITES or name.startswith((GRAPH, REFERENCE_FOLDER)) or is_of_variant(name)
