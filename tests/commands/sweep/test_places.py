"""Which nodes of a cluster a sweep uses."""

from __future__ import annotations

import pytest

from vitdeploy import environment
from vitdeploy.cluster import Node
from vitdeploy.commands.sweep.definition import ClusterSpec
from vitdeploy.commands.sweep.places import choose_machine, choose_places
from vitdeploy.errors import RemoteError

GIB = 1 << 30
HERE = environment.host()
OTHER = HERE.model_copy(update={"cpu": "Another CPU"})
THIRD = HERE.model_copy(update={"cpu": "A third CPU"})


def node(name: str, *, cpus: float = 8, memory: int = 16, host: environment.Host = HERE, **facts: str) -> Node:
    own = {"boot": f"boot of {name}", "lock": "1:2", **facts}
    return Node(id=name, name=name, cpus=cpus, memory_bytes=memory * GIB, resources=frozenset(), host=host, **own)


def test_trials_run_on_machines_like_this_one() -> None:
    assert choose_machine([node("a", host=OTHER), node("b")]) == HERE.machine
    assert choose_machine([node("a", host=OTHER), node("b", host=OTHER)]) == OTHER.machine
    with pytest.raises(RemoteError, match="2 kinds of machines") as caught:
        choose_machine([node("a", host=OTHER), node("b", host=THIRD)])
    assert "a: Another CPU" in caught.value.message


def test_a_bench_takes_all_cpus_of_the_largest_nodes() -> None:
    places = choose_places([node("a", cpus=2), node("b", cpus=16), node("c", host=OTHER)], HERE.machine, ClusterSpec())
    assert (places.shared.cpus, places.alone.cpus) == (2, 16)
    assert places.names == {"a": "a", "b": "b"}
    assert places.alone.nodes == places.shared.nodes == ("a", "b")
    assert not places.alone.fits(node("a", cpus=2))
    asked = choose_places([node("a")], HERE.machine, ClusterSpec(cpus=3, memory_gib=5))
    assert (asked.shared.cpus, asked.shared.memory_bytes) == (3, 5 * GIB)
    with pytest.raises(RemoteError, match=r"no node has the 9 CPUs .* a \(8 CPUs, 16 GiB\)"):
        choose_places([node("a")], HERE.machine, ClusterSpec(cpus=9))


def test_nodes_on_one_machine_have_to_share_its_lock() -> None:
    together = [node("a", boot="one"), node("b", boot="one")]
    assert len(choose_places(together, HERE.machine, ClusterSpec()).names) == 2
    with pytest.raises(RemoteError, match="a and b are on one machine, but do not share its lock"):
        choose_places([node("a", boot="one"), node("b", boot="one", lock="3:4")], HERE.machine, ClusterSpec())
    assert choose_places([node("a"), node("b", lock="3:4")], HERE.machine, ClusterSpec()), "two machines have two locks"
