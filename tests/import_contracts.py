"""Contracts that import-linter does not bring: `make lint` loads them from here."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output


class PrivateModules(Contract):
    """A module or package whose name begins with `_` is imported only from inside the package that holds it."""

    type_name = "private_modules"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        """Look at every import of a private module."""
        broken = sorted(
            f"{importer} -> {imported}"
            for imported in graph.modules
            if (holder := _holder(imported)) is not None
            for importer in graph.find_modules_that_directly_import(imported)
            if not f"{importer}.".startswith(f"{holder}.")
        )
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        """Print each import that should not be."""
        for line in check.metadata["broken"]:
            output.print_error(line)


def _holder(module: str) -> str | None:
    """The package around the first private name in `module`; None if there is none."""
    parts = module.split(".")
    place = next((i for i, part in enumerate(parts) if part.startswith("_") and not part.startswith("__")), None)
    return None if place is None else ".".join(parts[:place])
