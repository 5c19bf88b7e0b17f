"""`vitdeploy sweep`: run the trials of a matrix that are not finished yet, and show all of them side by side."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from vitdeploy import artifact as artifacts
from vitdeploy.cluster import Cluster, connect
from vitdeploy.commands.log.sweep_log import SweepLog
from vitdeploy.commands.report.report import is_available
from vitdeploy.commands.sweep.definition import read_definition
from vitdeploy.commands.sweep.naming import Naming
from vitdeploy.commands.sweep.on_cluster import ClusterRun
from vitdeploy.commands.sweep.pick import Expression, parse_pick, pick
from vitdeploy.commands.sweep.places import choose_machine, choose_places
from vitdeploy.commands.sweep.store import CSV, JSONL, PAGE, SweepFolder
from vitdeploy.commands.sweep.trial import Tools
from vitdeploy.commands.sweep.work import SweepPlan, SweepWork
from vitdeploy.errors import UsageError
from vitdeploy.evidence import Picked, Sweep, SweepRow
from vitdeploy.frozen import replace
from vitdeploy.progress import Progress


def sweep(file: Path, out: Path | None, progress: Progress, plan: SweepPlan) -> Sweep:
    """Run a sweep, or go on with it.

    Args:
        file: the sweep file.
        out: the folder of the sweep; None: named after the file.
        progress: gets the steps and warnings.
        plan: how it is run.

    Raises:
        RecipeError, SourceError: the file is not valid.
        UsageError: the folder is not that of a sweep, `--pick` is not valid, or nothing passes it.
        ArtifactError: the folder cannot be written, or the disk is full. Finished trials stay.
        RemoteError: the cluster cannot be used, or no node is left that can do the work. Finished trials stay.
    """
    started = time.monotonic()
    expression = None if plan.pick is None else parse_pick(plan.pick)
    if plan.to is not None and expression is None:
        raise UsageError("--to is the place of the trial that --pick chooses", fix="Give --pick too.")
    if plan.to is not None and not plan.dry_run:
        artifacts.refuse_existing(plan.to, force=plan.force)
    folder = SweepFolder(out or Path(file.stem))
    folder.check()
    with nullcontext() if plan.ray is None else connect(plan.ray, progress) as cluster:
        naming = Naming(None if cluster is None else choose_machine(cluster.nodes))
        definition = read_definition(file, naming, plan.find_host)
        tools = Tools(progress, naming, plan.cache, plan.alone)
        if plan.dry_run:
            return SweepWork(definition, folder, tools, plan, started).result(picked=None)
        with folder.locked(file):
            work = SweepWork(definition, folder, tools, plan, started)  # reads what another process has just finished
            recipes = {trial.name: trial.recipe for trial in definition.trials}
            versions = {
                trial.name: definition.hosts[trial.hosts[0]].versions for trial in definition.trials if trial.hosts
            }
            with SweepLog(plan.logs, folder.read_id(), folder.path, file, recipes, versions).opened() as work.log:
                try:
                    _run(work, cluster)
                finally:  # an interrupt too leaves tables of what is finished
                    work.publish()
                return _finish(work, expression)


def _run(work: SweepWork, cluster: Cluster | None) -> None:
    """Run the trials on this machine, or on the nodes of a cluster."""
    if cluster is None:
        work.run()
    else:
        places = choose_places(cluster.nodes, work.tools.naming.machine, work.definition.cluster)
        ClusterRun(work, cluster, places).run()


def _finish(work: SweepWork, expression: Expression | None) -> Sweep:
    """Write the page, and copy the chosen trial out."""
    result = work.result(picked=None)
    page = _write_page(result, work.folder, work.tools.progress)
    picked = None if expression is None else _copy_best(expression, result.trials, work)
    return replace(
        result,
        picked=picked,
        page=page,
        csv=str(work.folder.path / CSV),
        jsonl=str(work.folder.path / JSONL),
        seconds=round(time.monotonic() - work.started, 1),
    )


def _write_page(result: Sweep, folder: SweepFolder, progress: Progress) -> str | None:
    if not is_available():
        progress.warn(f"no {PAGE}: pip install 'vitdeploy[report]', then run the sweep again; nothing is done twice")
        return None
    from vitdeploy.render.html.sweep import render_sweep

    folder.write({PAGE: render_sweep(result)})
    return str(folder.path / PAGE)


def _copy_best(expression: Expression, rows: Sequence[SweepRow], work: SweepWork) -> Picked:
    """Choose a trial, and copy its artifact with its evidence.

    Those of other machines are chosen from only if the matrix has no valid trial: their latencies are not of this one.

    Raises:
        UsageError: no valid trial passes the conditions.
        ArtifactError: the place cannot be written, or the artifact is damaged.
    """
    own = [row for row in rows if row.name in work.names]
    best, notes = pick(expression, own if any(row.valid for row in own) else rows)
    if best.name not in work.names:
        notes.insert(0, "it was measured on another machine; no trial of this one is valid")
    to = work.plan.to or work.folder.path / "picked"
    force = work.plan.force or work.plan.to is None
    source = work.folder.artifact(best.name)
    artifacts.load(source)
    with artifacts.atomic_folder(to, force=force) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
    value = expression.value(best)
    assert value is not None
    return Picked(
        expression=expression.text,
        trial=best.name,
        metric=expression.name,
        value=value,
        path=str(to),
        notes=tuple(notes),
    )
