"""The sections on the environment of the measurements and on the recipe."""

from __future__ import annotations

from vitdeploy.artifact import Trial
from vitdeploy.environment import Host
from vitdeploy.evidence import Run
from vitdeploy.render import numbers
from vitdeploy.render.html.parts import Code, Missing, NamedValues, Part, Section, Table
from vitdeploy.render.html.subject import Subject

_SHORT = 16  # digits of a digest: enough to compare by eye


def environment(subject: Subject) -> Section:
    """Show the machines of compilation and timing, and the versions of the libraries."""
    manifest = subject.manifest
    host = manifest.target.host
    parts: list[Part] = []
    missing: Missing | None = None
    if host is None:
        missing = Missing(
            "nothing is compiled yet, so there is no machine to describe", f"vitdeploy compile {subject.folder}"
        )
    else:
        parts.append(NamedValues(_host(host, manifest.target.backend), title="Compiled on"))
    if subject.bench is not None and host is not None:
        same = subject.bench.machine == host.machine
        which = "the machine it was compiled on" if same else "not the machine it was compiled on"
        rows = [("machine", f"{which} ({subject.bench.machine or 'not recorded'})")]
        rows += [(run.name, _effective(run)) for run in subject.bench.runs]
        parts.append(NamedValues(tuple(rows), title="Timed on"))
    versions = tuple((name, version) for name, version in manifest.versions.items())
    parts.append(Table(("library", "version"), versions, title="Library versions at export", folded=True))
    return Section("environment", "Environment", parts=tuple(parts), missing=missing)


def recipe(subject: Subject) -> Section:
    """Show the recipe, the work of the passes, the choices of quantization, and the files."""
    manifest = subject.manifest
    parts: list[Part] = [Code(manifest.recipe.to_yaml())]
    if len(manifest.trials) > 1:
        head = ("precision", "points lost", "times as fast", "result")
        rows = tuple(map(_trial, manifest.trials))
        parts.append(Table(head, rows, numeric=frozenset({1, 2}), title="Precisions that were tried", folded=True))
    passes = tuple((p.name, str(p.fired), str(len(p.refused) or numbers.NOTHING)) for p in manifest.passes)
    parts.append(
        Table(("pass", "rewrites", "refusals"), passes, numeric=frozenset({1, 2}), title="Graph passes", folded=True)
    )
    refused = tuple((p.name, r.site, r.reason) for p in manifest.passes for r in p.refused)
    if refused:
        title = f"Graph passes: the reasons of {len(refused)} refusal{'s' if len(refused) > 1 else ''}"
        parts.append(Table(("pass", "place", "reason"), refused, title=title, folded=True))
    if manifest.quantized:
        choices = tuple(manifest.quantized.rows())
        parts.append(Table(("choice", "value"), choices, title="Quantization", folded=True))
    if manifest.placement:
        placement = tuple((name, site.precision, site.rule) for name, site in manifest.placement.items())
        title = "Precision of each site, and the rule that decided it"
        parts.append(Table(("site", "precision", "rule"), placement, title=title, folded=True))
    files = tuple((f.path, numbers.size(f.bytes), f.sha256[:_SHORT]) for f in manifest.files)
    parts.append(Table(("file", "size", "sha256"), files, numeric=frozenset({1}), title="Files", folded=True))
    lede = f"Recipe digest {manifest.recipe_digest[:_SHORT]}; weights digest {manifest.model.digest[:_SHORT]}."
    return Section("recipe", "Recipe", lede=lede, parts=tuple(parts))


def _trial(trial: Trial) -> tuple[str, ...]:
    lost = numbers.NOTHING if trial.lost is None else f"{trial.lost:.2f}"
    result = "kept" if trial.kept and not trial.why else "; ".join(filter(None, (trial.why, trial.located)))
    return trial.label, lost, numbers.speedup(trial.speedup), result


def _host(host: Host, backend: str | None) -> tuple[tuple[str, str], ...]:
    rows = [
        ("CPU", f"{host.cpu}, {host.cores} cores for this process, {host.memory_gib} GiB"),
        ("instruction sets", " ".join(host.isa) or "unknown"),
        ("system", f"{host.system}, Python {host.python}"),
    ]
    if host.gpu or host.jetpack:
        rows.insert(1, ("GPU", host.gpu or "unknown"))
    if host.jetpack:
        rows.insert(2, ("Jetson Linux", host.jetpack))
    return (("backend", backend or "unknown"), *rows)


def _effective(run: Run) -> str:
    settings = {"threads": str(run.threads), **run.effective} if run.threads else dict(run.effective)
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()) or "not recorded"
