"""The Python reference: directives for mkdocstrings, which reads signatures and docstrings without importing."""

from __future__ import annotations

import vitdeploy

EXTEND = (
    "vitdeploy.passes.Pass",
    "vitdeploy.passes.PassResult",
    "vitdeploy.targets.Target",
    "vitdeploy.calibrate.precision.Precision",
    "vitdeploy.tasks.Task",
    "vitdeploy.sources.Source",
)
"""The base classes of what can be added with one file."""


def write_page() -> str:
    """Return the page: the public names, then the classes to extend."""
    public = {name: getattr(vitdeploy, name) for name in vitdeploy.__all__ if not name.startswith("_")}
    types = [name for name, member in public.items() if isinstance(member, type)]
    functions = [name for name in public if name not in types]
    lines = [
        "# Python reference",
        "",
        "Made from the signatures and docstrings when this site is built. [Python](python.md) is the guide.",
        "",
        "## Functions",
        "",
        *(_directive(f"vitdeploy.{name}") for name in functions),
        "## Types",
        "",
        *(_directive(f"{public[name].__module__}.{name}") for name in types),
        "## Classes to extend",
        "",
        "[Add a pass, a target or a precision](extending.md) shows one of each.",
        "",
        *(_directive(name) for name in EXTEND),
    ]
    return "\n".join(lines)


def _directive(path: str) -> str:
    return f"::: {path}\n"
