"""The linears that read the channels of a value, and nothing else that does."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from vitdeploy.graph.model import operand
from vitdeploy.passes._linear import match_linear
from vitdeploy.passes._trace_channels import Arrival
from vitdeploy.session import Array


@dataclass(frozen=True)
class ChannelReader:
    """A linear that reads a source. Its K input channels are the `channels` of the source."""

    product: ir.Node
    weight: Array
    channels: Array

    @property
    def name(self) -> str:
        """The name of the linear's input."""
        return operand(self.product, 0).name or ""


def match_readers(arrivals: list[Arrival]) -> list[ChannelReader] | str:
    """Return the linears where the channels arrive, or why not all of these readers are linears."""
    readers = []
    for node, index, numbers in arrivals:
        linear = match_linear(node) if node is not None and node.op_type == "MatMul" and index == 0 else None
        if linear is None:
            return f"{node.name if node is not None else 'the output'} reads it, which is not a linear"
        channels = numbers.reshape(-1, numbers.shape[-1])
        if (channels != channels[:1]).any():
            return f"{linear.product.name} reads different channels for each token"
        readers.append(ChannelReader(linear.product, linear.weight, channels[0]))
    return readers or "nothing reads it"
