"""`eval` on the nodes of a cluster: the JSON of a serial evaluation."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from vitdeploy.artifact import Artifact
from vitdeploy.cluster import Cluster
from vitdeploy.commands.evaluate.evaluate import evaluate
from vitdeploy.progress import Silent


@pytest.mark.slow
def test_nodes_give_the_answer_of_one_process(
    cluster: Cluster, ray_nodes: Any, demo: Callable[..., Artifact], copy: Callable[..., Artifact]
) -> None:
    artifact = copy(demo(target="onnxruntime", precision="int8-dynamic"))
    texts, files = set(), set()
    for address in (None, ray_nodes.address):
        evaluation = evaluate(artifact, "demo:digits", Silent(), limit=200, ray=address)
        texts.add(json.dumps(evaluation.model_dump(mode="json")))
        files.add((artifact.path / "eval.samples.npz").read_bytes())
    assert len(texts) == len(files) == 1
