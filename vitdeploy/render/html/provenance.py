"""Where the figures come from: the environment, and the recipe that made the artifact."""

from __future__ import annotations

from vitdeploy.environment import Host
from vitdeploy.evidence import Run
from vitdeploy.render import numbers
from vitdeploy.render.html.parts import Code, Facts, Missing, Part, Section, Table
from vitdeploy.render.html.subject import Subject

_SHORT = 16  # digits of a digest that anyone compares by eye


def environment(subject: Subject) -> Section:
    """The machine it was compiled on, the one it was timed on, and every library's version."""
    manifest = subject.manifest
    host = manifest.target.host
    parts: list[Part] = []
    missing: Missing | None = None
    if host is None:
        missing = Missing(
            "nothing is compiled yet, so there is no device to name", f"vitdeploy compile {subject.folder}"
        )
    else:
        parts.append(Facts(_host(host, manifest.target.backend), title="Compiled on"))
    if subject.bench is not None and host is not None:
        same = subject.bench.machine == host.machine
        told = "the same machine" if same else "another machine than the one it was compiled on"
        rows = [("machine", f"{told} ({subject.bench.machine or 'not recorded'})")]
        rows += [(run.name, _effective(run)) for run in subject.bench.runs]
        parts.append(Facts(tuple(rows), title="Timed on"))
    versions = tuple((name, version) for name, version in manifest.versions.items())
    parts.append(Table(("library", "version"), versions, title="Library versions at export", folded=True))
    return Section("environment", "Environment", parts=tuple(parts), missing=missing)


def recipe(subject: Subject) -> Section:
    """The recipe in full, what the passes did, what quantization chose, and the files with their hashes."""
    manifest = subject.manifest
    parts: list[Part] = [Code(manifest.recipe.to_yaml())]
    passes = tuple((p.name, str(p.fired), str(len(p.refused) or numbers.NOTHING)) for p in manifest.passes)
    parts.append(Table(("pass", "fired", "refused"), passes, numeric=frozenset({1, 2}), title="Passes", folded=True))
    refused = tuple((p.name, r.site, r.reason) for p in manifest.passes for r in p.refused)
    if refused:
        parts.append(Table(("pass", "site", "reason"), refused, title=f"{len(refused)} refusals", folded=True))
    if manifest.quantized:
        rows = tuple(manifest.quantized.rows())
        parts.append(Table(("quantization", ""), rows, title="What quantization did", folded=True))
    if manifest.placement:
        placed = tuple((name, site.precision, site.rule) for name, site in manifest.placement.items())
        parts.append(Table(("site", "precision", "rule"), placed, title="Where, and by which rule", folded=True))
    files = tuple((f.path, numbers.size(f.bytes), f.sha256[:_SHORT]) for f in manifest.files)
    parts.append(Table(("file", "size", "sha256"), files, numeric=frozenset({1}), title="Files", folded=True))
    lede = f"Recipe digest {manifest.recipe_digest[:_SHORT]}; weights digest {manifest.model.digest[:_SHORT]}."
    return Section("recipe", "Recipe", lede=lede, parts=tuple(parts))


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
    told = {"threads": str(run.threads), **run.effective} if run.threads else dict(run.effective)
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in told.items()) or "not recorded"
