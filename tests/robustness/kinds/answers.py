"""Changed answers of a host: one line of error, or a result whose files have the digests that were announced.

The commands with `--host` run as they are, over a link that answers by itself. One answer of each command is changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from tests.robustness import made
from tests.robustness.cases import FINE, WRONG, Judged
from tests.robustness.mutations import mutate_bytes, mutate_json

_NOISE = (b"Welcome to Ubuntu\n", b"motd { not json }\n", b"{\n", b"\xff\xfe\n", b"\x1b[31mhello\x1b[0m\n", b"")
Answers = dict[str, bytes]


class _Now:
    """A pool of threads that works at once."""

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work())
        return future


class AnsweringLink:
    """A link to a host that gives prepared answers to `vitdeploy device …`, and runs nothing."""

    answers: ClassVar[Answers] = {}

    def __init__(self, host: Any, progress: Any, **_: Any) -> None:
        self.host = host

    def __enter__(self) -> AnsweringLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    @contextmanager
    def calling(self, words: Sequence[str], *, timeout: float | None = None) -> Iterator[Any]:
        """Answer one command."""
        from vitdeploy.remote.near.ssh import Call

        verb = words[1]
        pool: Any = _Now()
        with tempfile.TemporaryFile() as stderr:  # a real file, as the client waits for its descriptor
            stderr.write(self.answers.get(f"{verb}-stderr", b""))
            stderr.seek(0)
            yield Call(io.BytesIO(), io.BytesIO(self.answers[verb]), stderr, pool)

    def persistently(self, work: Callable[[], Any]) -> Any:
        """Call `work`; this link never drops."""
        return work()


class HostAnswers:
    """What `hosts`, `compile`, `bench` and `eval` get from a host."""

    name = "answers"
    seconds = 60.0
    mebibytes = 256

    def prepare(self, folder: Path) -> None:
        """Record what a good host answers about the tiny artifact."""
        from vitdeploy import artifact as artifacts
        from vitdeploy.evidence import Bench, Eval
        from vitdeploy.remote.near import commands, listing

        self._artifact = made.export_tiny(folder)
        made.add_evidence(self._artifact, folder / "images.npz")
        loaded = artifacts.load(self._artifact)
        self._evidence = {
            "bench": loaded.read_evidence(Bench)[0],
            "eval": loaded.read_evidence(Eval)[0],
        }
        setattr(commands, "Link", AnsweringLink)  # noqa: B010  mypy knows the real one
        setattr(listing, "Link", AnsweringLink)  # noqa: B010
        setattr(commands, "save_reference", lambda *arguments, **_: arguments[2].write_bytes(b"answers"))  # noqa: B010
        self._canary = folder / "outside"
        self._canary.mkdir()
        self._answers = {name: self._make_answers(name) for name in ("hosts", "compile", "bench", "eval")}
        place = folder / "good"
        place.mkdir()
        for name, answers in self._answers.items():
            if problem := self._act(name, answers, place):
                raise RuntimeError(f"{name} with good answers: {problem}")

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Change one answer to one command."""
        name = rng.choice(sorted(self._answers))
        verb = rng.choice(sorted(self._answers[name]))
        content = self._answers[name][verb]
        changed, what = (mutate_json if content[:1] == b"{" else mutate_bytes)(content, rng)
        if rng.random() < 0.1:
            changed, what = rng.choice(_NOISE) + content, "text before it"
        problem = self._act(name, self._answers[name] | {verb: changed}, folder)
        return Judged(WRONG if problem else FINE, f"{name}, {verb}: {what}; {problem}")

    def _act(self, name: str, answers: Answers, folder: Path) -> str:
        """Run one command. Return what is wrong with what it left; empty if nothing is."""
        from vitdeploy import artifact as artifacts
        from vitdeploy.progress import Silent
        from vitdeploy.remote.near import commands, hosts, listing

        AnsweringLink.answers = answers
        host = hosts.find("ssh://nobody@127.0.0.1:1")
        loaded = artifacts.load(self._artifact)
        before = _snapshot(folder.parent, (folder, self._artifact))
        try:
            if name == "hosts":
                listing.list_hosts(["ssh://nobody@127.0.0.1:1"], Silent()).model_dump_json()
            elif name == "compile":
                commands.compile_on(host, loaded, folder / "new", Silent())
                artifacts.load(folder / "new")
            elif name == "bench":
                commands.bench_on(host, [loaded], Silent())
            else:
                commands.evaluate_on(host, loaded, "demo:digits", Silent())
        finally:
            changed = _snapshot(folder.parent, (folder, self._artifact)) ^ before
            for path in self._artifact.iterdir():
                if path.name in ("bench.json", "eval.json", "eval.samples.npz", "eval.flips.npz"):
                    path.unlink()
            shutil.rmtree(folder / "new", ignore_errors=True)
        return f"it changed {sorted(changed)[:3]}" if changed else ""

    def _make_answers(self, name: str) -> Answers:
        from vitdeploy import __version__
        from vitdeploy.artifact.layout import RAW
        from vitdeploy.commands.doctor import doctor
        from vitdeploy.evidence import Availability
        from vitdeploy.remote.messages import (
            INTERFACE,
            Condition,
            JobEnd,
            JobFile,
            JobStart,
            MissingBlob,
            MissingBlobs,
            Probe,
            ResultFiles,
        )

        diagnosis = doctor().model_copy(update={"targets": {"onnxruntime": Availability(available=True)}})
        probe = Probe(
            interface=INTERFACE, version=__version__, python="python3", cache="/c", doctor=diagnosis,
            condition=Condition(module="Orin", cpu_mhz=1200.0, unknown={"gpu_mhz": "no such file"}), notes=("a note",),
        )  # fmt: skip
        answers: Answers = {"probe": probe.model_dump_json().encode()}
        if name == "hosts":
            return answers
        files = [
            p for p in sorted(self._artifact.rglob("*")) if p.is_file() and p.name not in ("bench.json", "eval.json")
        ]
        contents = {p.relative_to(self._artifact).as_posix(): p.read_bytes() for p in files}
        sent = [
            JobFile(path=path, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for path, content in contents.items()
        ]
        listed = [file for file in sent if file.path not in ("gate.json", *RAW)]
        wanted = () if name == "compile" else ("graph.onnx", "sites.json")
        gaps = tuple(MissingBlob(sha256=f.sha256, bytes=f.bytes, have=3) for f in listed if f.path in wanted)
        result = self._exported() if name == "compile" else _dump(self._evidence[name])
        returned = [f for f in sent if f.path in RAW] if name == "eval" else listed
        fresh = b"".join(contents[f.path] for f in returned if f.path in ("audit.json", *RAW))  # we have the others
        return answers | {
            "missing": MissingBlobs(gaps=gaps, free_bytes=1 << 40).model_dump_json().encode(),
            "put": b'{"whole": 2}',
            "start": JobStart(job="job-1", resumed=False).model_dump_json().encode(),
            "follow": JobEnd(state="done", code=0, result=result, notes=()).model_dump_json().encode(),
            "follow-stderr": b"compiling\nnote: something\nerror: no\n",
            "results": ResultFiles(files=tuple(returned)).model_dump_json().encode(),
            "get": fresh,
            "take": b"{}",
        }

    def _exported(self) -> dict[str, Any]:
        from vitdeploy import artifact as artifacts
        from vitdeploy.pipeline.summary import summarize_export

        loaded = artifacts.load(self._artifact)
        return _dump(summarize_export(self._artifact, loaded.manifest, 1.0, ["a note"]))


def _dump(model: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = json.loads(model.model_dump_json())
    return dumped


def _snapshot(folder: Path, besides: Sequence[Path]) -> frozenset[str]:
    """The files below a folder with their sizes, but those below some others."""
    return frozenset(
        f"{path}:{path.stat().st_size}"
        for path in folder.rglob("*")
        if path.is_file() and not any(path.is_relative_to(other) for other in besides)
    )
