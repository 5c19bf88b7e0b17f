"""FP8 (E4M3) linears with ranges from calibration images."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vitdeploy.calibrate.static import StaticPrecision
from vitdeploy.graph.dialect import Dialect, Numbers

if TYPE_CHECKING:
    from vitdeploy.quantize.qdq import CodeType


class Float8(StaticPrecision):
    """Q/DQ pairs in E4M3 on the linears, for GPUs of the Ada generation or newer."""

    numbers: ClassVar[Numbers] = Numbers("fp8", weights="fp8", products="fp8")

    def code_type(self, dialect: Dialect) -> CodeType:  # noqa: ARG002  the same for all
        """Return E4M3."""
        return "e4m3"
