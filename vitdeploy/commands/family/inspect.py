"""`vitdeploy inspect` of a family: the audit of each part, and how the pair compares with the whole model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from vitdeploy.artifact import Parity
from vitdeploy.artifact.family import Family, PartRecord
from vitdeploy.commands.inspect.inspect import inspect
from vitdeploy.evidence import Audit


class InspectedFamily(BaseModel):
    """The audits of the parts by name, and what family.json says about the pair."""

    model_config = ConfigDict(frozen=True)
    kind: str
    model: str
    memory: str
    records: dict[str, PartRecord]
    parts: dict[str, Audit]
    parity: Parity | None
    graph_parity: Parity | None
    mask_iou: float | None
    doubts: tuple[str, ...]


def inspect_family(family: Family) -> InspectedFamily:
    """Return the audits of both parts, and the record of the pair.

    Raises:
        VitdeployError: see `inspect`.
    """
    record = family.record
    return InspectedFamily(
        kind=record.kind,
        model=record.model,
        memory=record.memory,
        records=dict(record.parts),
        parts={name: inspect(part) for name, part in family.parts.items()},
        parity=record.parity,
        graph_parity=record.graph_parity,
        mask_iou=record.mask_iou,
        doubts=record.doubts,
    )
