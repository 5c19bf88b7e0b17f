"""The names of the files in an artifact folder."""

from __future__ import annotations

MANIFEST = "manifest.json"
GRAPH = "graph.onnx"
"""What the compiler is fed; large weights lie beside it, under names that begin with it."""
SITES = "sites.json"
REFERENCE = "reference/"
"""What the float32 reference gave, for devices that cannot run it."""
EXAMPLE = f"{REFERENCE}example.npz"
EVIDENCE = ("audit.json", "bench.json", "eval.json", "gate.json", "sensitivity.json")
"""Written beside the files that the manifest lists, and not among them: it is about them."""
REPORT = "report.html"


def is_in_bundle(name: str) -> bool:
    """Return whether a file belongs to the bundle, so that another machine can compile from it."""
    return name == SITES or name.startswith((GRAPH, REFERENCE))
