"""The sweep file: one base recipe, a matrix of axes, excludes and limits, as a list of trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vitdeploy import recipe as recipes
from vitdeploy import sources, targets, tasks
from vitdeploy.commands.sweep.axes import (
    HERE,
    HOST,
    Axis,
    Combination,
    combine,
    describe,
    overlay,
    read_axes,
    write_out,
)
from vitdeploy.commands.sweep.hosts import FindHost, SweepHost, no_host
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.errors import RecipeError, VitdeployError
from vitdeploy.frozen import Frozen, parse, replace
from vitdeploy.plugins import did_you_mean
from vitdeploy.recipe import GateSpec, Recipe
from vitdeploy.recipe.shipped import find_recipe

_FIX = "A sweep has the keys recipe, matrix, exclude, limits and cluster: see docs/sweeps.md."
_STAYING = ("batch", "input", "portable")
"""Keys of a target that every target has. Its device and its own options belong to it alone."""


class ClusterSpec(Frozen):
    """The resources of a node that the export and the evaluation of one trial need, with `--ray`.

    Attributes:
        cpus: CPUs; None: 4, or all of the smallest node.
        memory_gib: memory in GiB, which a measurement of latency needs too.
    """

    cpus: float | None = Field(default=None, gt=0)
    memory_gib: float = Field(default=2.0, gt=0)


class SweepFile(Frozen):
    """The keys of a sweep file.

    Attributes:
        recipe: the base: keys of a recipe, or the name or the file of one.
        matrix: axis -> values.
        exclude: combinations to leave out, each as values of some axes.
        limits: limits of the gate, which judges every trial. They override those of the recipe.
        cluster: what trials need on a cluster. It decides no result.
    """

    recipe: dict[str, Any] | str = Field(default_factory=dict)
    matrix: dict[str, Any]
    exclude: tuple[dict[str, Any], ...] = ()
    limits: GateSpec = GateSpec()
    cluster: ClusterSpec = ClusterSpec()


class TrialSpec(Frozen):
    """A trial: everything that decides it. It is data, so that any machine with the same files can run it.

    Attributes:
        name: the name of its folder; the digest at its end is that of all that decides it.
        setting: the same digest without the machine and the versions of libraries.
        axes: axis -> value, in words.
        recipe: without limits, which decide no result.
        limits: what the gate judges.
        hosts: the hosts of one kind that may compile, evaluate and time it; empty: this machine, or nodes of a cluster.
    """

    name: str
    setting: str
    axes: Mapping[str, str]
    recipe: Recipe
    limits: GateSpec
    hosts: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The values of the axes in a few words, for people."""
        return ", ".join(self.axes.values())

    def join(self, other: TrialSpec) -> TrialSpec:
        """Return this trial for the hosts of both. Their kind is the same, or it would be another trial."""
        if not self.hosts:
            return self
        hosts = tuple(dict.fromkeys((*self.hosts, *other.hosts)))
        return replace(self, hosts=hosts, axes={**self.axes, HOST: ", ".join(hosts)})


@dataclass(frozen=True)
class Definition:
    """A sweep file that was read.

    Attributes:
        file: the file.
        trials: in the order of the matrix.
        excluded: the number of excluded combinations.
        cluster: what trials need on a cluster.
        hosts: the hosts that trials name, each connected to once.
    """

    file: Path
    trials: tuple[TrialSpec, ...]
    excluded: int
    cluster: ClusterSpec
    hosts: Mapping[str, SweepHost]


def read_definition(path: Path, naming: Naming, find_host: FindHost = no_host) -> Definition:
    """Read a sweep file.

    Args:
        path: the YAML file. Relative paths in it are taken from its folder.
        naming: gives trials their names.
        find_host: connects to a host that the file names.

    Raises:
        RemoteError: a host cannot be used.
        RecipeError: it is missing, is not YAML, does not fit the schema, or a combination is no valid recipe.
        SourceError: a model has none of the known forms.
    """
    where = str(path)
    try:
        raw = recipes.read_mapping(path, _FIX)
    except FileNotFoundError:
        raise RecipeError(f"there is no sweep file {path}", fix=_FIX) from None
    raw = {**raw, "matrix": raw.get("matrix") or {}}  # so that an unknown key is named first
    file = parse(SweepFile, raw, where=where)
    if file.limits.require_signed is not None:
        raise RecipeError(
            f"{where}: limits.require_signed is no limit of a sweep, whose artifacts are not signed",
            fix="Sign the chosen artifact with vitdeploy sign, and give --require-signed to vitdeploy gate.",
        )
    axes = read_axes(file.matrix, where)
    combinations, excluded = combine(axes, file.exclude, where)
    base, folder = _read_base(file.recipe, path), path.resolve().parent
    trials: dict[str, TrialSpec] = {}
    hosts: dict[str, SweepHost] = {}
    for combination in combinations:
        name = next((value for axis, value in zip(axes, combination, strict=True) if axis.name == HOST), HERE)
        if name != HERE and name not in hosts:
            hosts[name] = find_host(name)
        trial = _make_trial(base, axes, combination, file.limits, folder, where, naming, hosts.get(name))
        known = trials.get(trial.name)  # two combinations may describe the same recipe, and two hosts be of one kind
        trials[trial.name] = trial if known is None else known.join(trial)
    by_name = {host.name: host for host in hosts.values()}
    return Definition(path, tuple(trials.values()), excluded, file.cluster, by_name)


def _read_base(base: dict[str, Any] | str, path: Path) -> dict[str, Any]:
    """Return the keys of the base recipe. Those of a file have its paths made absolute."""
    if isinstance(base, dict):
        for key in base.keys() - Recipe.model_fields.keys():
            known = list(Recipe.model_fields)
            message = f"{path}: unknown key {f'recipe.{key}'!r}{did_you_mean(str(key), known)}"
            raise RecipeError(message, fix=f"Known keys there: {', '.join(known)}.")
        return write_out(base)
    beside = path.resolve().parent / base
    recipe = find_recipe(str(beside) if beside.is_file() else base, sources.anchor)
    return recipe.model_dump(mode="json", exclude_unset=True)


def _make_trial(
    base: dict[str, Any],
    axes: tuple[Axis, ...],
    combination: Combination,
    limits: GateSpec,
    folder: Path,
    where: str,
    naming: Naming,
    host: SweepHost | None,
) -> TrialSpec:
    values = {axis.name: describe(value) for axis, value in zip(axes, combination, strict=True)}
    settings = {k: v for axis, value in zip(axes, combination, strict=True) for k, v in axis.settings(value).items()}
    settings.pop(HOST, None)
    place = f"{where}: {', '.join(f'{name}={value}' for name, value in values.items())}"
    try:
        raw = overlay(_drop_other_options(base, settings), iter(settings.items()))
        recipe = recipes.build(raw, folder, sources.anchor, where=place)
        targets.find(recipe.target)
        if recipe.task.kind is not None:
            tasks.find(recipe.task)
        short_name = sources.short_name(recipe.model.spec)
    except VitdeployError as error:
        message = error.message if error.message.startswith(where) else f"{place}: {error.message}"
        raise type(error)(message, fix=f"{error.fix} Or exclude this combination.") from None
    overrides = {key: value for key, value in limits.model_dump().items() if value is not None}
    of_recipe = {**recipe.gate.model_dump(), "require_signed": None}  # nothing is signed yet
    judged = parse(GateSpec, {**of_recipe, **overrides}, where=f"{where}: limits")
    recipe = replace(recipe, gate=GateSpec())
    facts = () if host is None else (host.kind, dict(host.versions))
    name, setting = naming.name(recipe, short_name, facts)
    hosts = () if host is None else (host.name,)
    return TrialSpec(name=name, setting=setting, axes=values, recipe=recipe, limits=judged, hosts=hosts)


def _drop_other_options(base: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the device and the options of the base's target, and of its task, where an axis sets another one."""
    changed = dict(base)
    for section, staying in (("target", _STAYING), ("task", ())):
        keys, kind = base.get(section), settings.get(f"{section}.kind")
        if isinstance(keys, dict) and kind is not None and keys.get("kind") not in (None, kind):
            changed[section] = {key: value for key, value in keys.items() if key in staying}
    return changed
