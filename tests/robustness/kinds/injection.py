"""Hostile text in artifacts, evidence, file names and arguments: it is shown, and it never does anything.

Checked is what the commands really write: the terminal, JSON, GitHub's workflow commands, Markdown, JUnit, the report.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from tests.robustness import made, tiny
from tests.robustness.cases import CRASH, FINE, WRONG, Judged
from tests.robustness.mutations import get, list_paths, put

_STRINGS = (
    "<script>pwn()</script>", "<pwn>", "\" onpwn=\"x", "' onpwn='x", "</td></tr></table><pwn>", "<!-- pwn", "]]><pwn>",
    "<img src=x onerror=pwn()>", "javascript:pwn()", "&lt;pwn&gt;<pwn/>", "<svg/onload=pwn()>",
    "{{ pwn }}", "{% pwn %}",
    "\x1b[2Jpwn", "\x1b]0;pwn\x07", "\x1b]8;;http://pwn\x1b\\pwn\x1b]8;;\x1b\\", "\x9b31mpwn", "\rpwn", "pwn\b\b\b",
    "\x00pwn", "\x7fpwn", "pwn\x0b\x0c", "\u202epwn", "\u2066pwn\u2069", "\u2028pwn", "\u0085pwn", "\ufeffpwn",
    "x\n::error::pwn", "::error::pwn", "::set-output name=x::pwn", "##[error]pwn", "x\r\n##[set-env name=PATH]pwn",
    "\n::stop-commands::pwn", "::add-mask::pwn", "%0A::error::pwn", "[bold red]pwn[/]", "[link=http://pwn]pwn[/link]",
    "[/]", "| pwn | pwn |", "pwn\n\n# pwn", "[pwn](http://pwn)", "![pwn](http://pwn)", "`pwn`", "**pwn**", "\n- pwn",
    "<details>pwn", "@pwn", "https://pwn.example", "a\\|pwn", "$(pwn)", "`pwn`;pwn", "--help", "-o/pwn", "../../pwn",
    "pwn\n\"><pwn>", "\U000e0001pwn", "p" * 5000, "\ud7ffpwn\uffff", "=cmd|'/c pwn'!A1",
)  # fmt: skip
_CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_COMMAND = re.compile(r"^\s*::(?!(?:notice|error|warning) title=vitdeploy gate)|##\[", re.MULTILINE)
_DIGEST = re.compile(r"Evidence: `?[0-9a-f]{64}`? \([a-z0-9 ,]+\)\.?")
_MARK = re.compile("<!-- vitdeploy gate [0-9a-f]{16} -->")
"""By which a script finds its own comment."""
"""A line of the gate's own."""
_FORBIDDEN_TAGS = {"script", "iframe", "link", "object", "form", "base", "embed"}
_EVIDENCE = ("audit.json", "bench.json", "eval.json")


class Injection:
    """Text from the strings above, in each place that holds text."""

    name = "injection"
    seconds = 60.0
    mebibytes = 1024
    """Some commands import PyTorch."""

    def prepare(self, folder: Path) -> None:
        """Make an artifact with evidence, and an image. Typer's own colours, which it adds in CI, are switched off."""
        os.environ |= {"_TYPER_FORCE_DISABLE_TERMINAL": "1", "NO_COLOR": "1"}
        self._artifact = made.export_tiny(folder)
        made.add_evidence(self._artifact, folder / "images.npz")
        self._shorten_bench()
        self._image = folder / "image.png"
        Image.fromarray(np.zeros((tiny.SIZE, tiny.SIZE, 3), np.uint8)).save(self._image)
        self._documents = {
            name: json.loads((self._artifact / name).read_bytes()) for name in (*_EVIDENCE, "manifest.json")
        }
        self._documents["manifest.json"]["labels"] = [f"label {n}" for n in range(tiny.CLASSES)]

    def judge(self, number: int, rng: random.Random, folder: Path) -> Judged:
        """Put one text into one place, and run one command."""
        text = rng.choice(_STRINGS)
        if rng.random() < 0.3:
            text = rng.choice(_STRINGS)[:40] + text
        os.environ.pop("GITHUB_ACTIONS", None)
        if rng.random() < 0.5:
            os.environ["GITHUB_ACTIONS"] = "true"
        make = rng.choice([self._in_artifact] * 4 + [self._in_argument, self._in_file_name, self._from_elsewhere])
        what, words, files = make(text, rng, folder)
        as_json = rng.random() < 0.15
        out, err, code = _run([*words, "--json"] if as_json else words, folder)
        problem = next(_find_problems(out, err, code, files, as_json=as_json), "")
        outcome = CRASH if "unexpected" in problem else WRONG if problem else FINE
        return Judged(outcome, f"{what}: {' '.join(words[:1])} with {text[:60]!r}; {problem}")

    def _in_artifact(self, text: str, rng: random.Random, folder: Path) -> tuple[str, list[str], list[Path]]:
        """Change a text in the manifest or in evidence; all evidence is about the changed manifest."""
        artifact = folder / "artifact"
        shutil.copytree(self._artifact, artifact)
        name = rng.choice([*self._documents, "manifest.json"])
        document = self._documents[name]
        places = [path for path in list_paths(document) if path and isinstance(get(document, path), str)]
        places = [path for path in places if path[-1] not in ("sha256", "manifest", "path")]
        path = rng.choice(places)
        manifest = self._documents["manifest.json"]
        if name == "manifest.json":
            manifest = put(manifest, path, text)
        raw = json.dumps(manifest).encode("utf-8", "surrogatepass")
        (artifact / "manifest.json").write_bytes(raw)
        for other in _EVIDENCE:
            changed = self._documents[other]
            if other == name:
                changed = put(changed, path, text)
            changed = changed | {"manifest": hashlib.sha256(raw).hexdigest()}
            (artifact / other).write_text(json.dumps(changed), encoding="utf-8")
        files = [folder / "summary.md", folder / "junit.xml"]
        commands = [
            (["gate", str(artifact), "--max-drop", "1", "--markdown", str(files[0]), "--junit", str(files[1])], files),
            (["inspect", str(artifact)], []),
            (["predict", str(artifact), str(self._image)], []),
        ]
        if rng.random() < 0.1:
            commands = [(["report", str(artifact), "-o", str(folder / "page.html")], [folder / "page.html"])]
        words, written = rng.choice(commands)
        return f"{name} {'.'.join(map(str, path))}", words, written

    def _in_argument(self, text: str, rng: random.Random, folder: Path) -> tuple[str, list[str], list[Path]]:
        words = rng.choice(
            [
                ["inspect", text],
                ["gate", str(self._artifact), "--baseline", text],
                ["export", f"timm:{text}", "--target", "onnxruntime"],
                ["export", text, "--target", "onnxruntime", "-o", str(folder / "o")],
                ["run", text],
                ["predict", str(self._artifact), text],
                ["recipes", text],
                ["eval", str(self._artifact), "--data", text],
            ]
        )
        words = [word for word in words if word != text] + ["--", text] if words[-1] == text else words
        return "an argument", [word.replace("\0", "") for word in words], []

    def _in_file_name(self, text: str, rng: random.Random, folder: Path) -> tuple[str, list[str], list[Path]]:
        """An image, a damaged image, or a folder of a class with this name."""
        name = text.replace("/", "_").replace("\0", "")[:60].encode("utf-8", "surrogateescape").decode() or "x"
        image = folder / f"{name}.png"
        try:
            image.write_bytes(self._image.read_bytes()[: rng.choice([30, 10_000])])
        except OSError:
            return "no such file name", ["recipes"], []
        if rng.random() < 0.5:
            return "a file name", ["predict", str(self._artifact), str(image)], []
        (folder / "data" / name).mkdir(parents=True)
        shutil.copy(image, folder / "data" / name / "0.png")
        return "a class's name", ["eval", str(self._artifact), "--data", str(folder / "data")], []

    def _from_elsewhere(self, text: str, rng: random.Random, folder: Path) -> tuple[str, list[str], list[Path]]:
        """A recipe with this text as a value or key."""
        recipe = folder / "recipe.yaml"
        content: Any = rng.choice(
            [
                {"model": {"spec": text}, "target": {"kind": "onnxruntime"}},
                {"model": {"spec": "demo:digits"}, "target": {"kind": text}},
                {"model": {"spec": "demo:digits"}, "target": {"kind": "onnxruntime"}, text: 1},
                {"model": {"spec": "demo:digits"}, "target": {"kind": "onnxruntime"}, "precision": {"kind": text}},
            ]
        )
        recipe.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        return "a recipe", ["run", str(recipe), "-o", str(folder / "out")], []

    def _shorten_bench(self) -> None:
        """Keep few raw samples, so that the files are small. What the evidence says does not matter here."""
        path = self._artifact / "bench.json"
        bench = json.loads(path.read_bytes())
        for run in bench["runs"]:
            run["blocks"] = [block[:3] for block in run["blocks"][:6]]
        path.write_text(json.dumps(bench), encoding="utf-8")


def _run(words: list[str], folder: Path) -> tuple[str, str, int]:
    from typer.testing import CliRunner

    from vitdeploy.cli import app

    before = Path.cwd()
    os.chdir(folder)
    try:
        ended = CliRunner().invoke(app, words)
    finally:
        os.chdir(before)
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        return ended.stdout, f"{ended.stderr}\nerror: unexpected {type(ended.exception).__name__}", 99
    return ended.stdout, ended.stderr, ended.exit_code


def _find_problems(out: str, err: str, code: int, files: list[Path], *, as_json: bool) -> Iterator[str]:
    """Yield what the text did in what a command wrote."""
    for name, text in (("stdout", out), ("stderr", err)):
        if found := _CONTROLS.search(text):
            yield f"{found[0]!r} on {name}: {text[max(found.start() - 30, 0) : found.end() + 20]!r}"
        if "GITHUB_ACTIONS" in os.environ and (found := _COMMAND.search(text)):
            yield f"a workflow command on {name}: {text[found.start() : found.end() + 30]!r}"
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    if any(line.startswith("error: unexpected") for line in errors) or "Traceback" in err:
        yield f"unexpected: {(errors or [err])[-1][:200]}"
    if code == 1 and len(errors) > 1:
        yield f"{len(errors)} lines of error"
    if as_json and out:
        try:
            json.loads(out)
        except ValueError:
            yield f"JSON that does not parse: {out[:60]!r}"
    for path in files:
        if path.exists():
            yield from _FILE_CHECKS[path.suffix](path.read_text(encoding="utf-8"))


def _check_markdown(text: str) -> Iterator[str]:
    if found := _CONTROLS.search(text):
        yield f"{found[0]!r} in Markdown"
    columns = 0
    for line in text.split("\n"):
        if _DIGEST.fullmatch(line) or _MARK.fullmatch(line):
            continue
        bare = re.sub(r"\\.", "", line)
        if re.search(r"<[a-zA-Z/!]|\]\(|`|!\[|\*\*pwn", bare):
            yield f"open Markdown: {line[:120]!r}"
        if line.startswith("|"):
            columns = columns or bare.count("|")
            if bare.count("|") != columns:
                yield f"a row of {bare.count('|') - 1} cells instead of {columns - 1}: {line[:120]!r}"
        else:
            columns = 0
            if line and not line.startswith(("### ", "- ")):
                yield f"a line of its own: {line[:120]!r}"


def _check_junit(text: str) -> Iterator[str]:
    try:
        tags = {element.tag for element in ElementTree.fromstring(text).iter()}
    except ElementTree.ParseError as error:
        yield f"JUnit does not parse: {error}"
        return
    if not tags <= {"testsuites", "testsuite", "testcase", "failure", "error", "system-out", "properties", "property"}:
        yield f"JUnit has {tags}"


class _Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, list[tuple[str, str | None]]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, attrs))


def _check_page(text: str) -> Iterator[str]:
    for tag, attributes in _Tags(text).seen:
        if tag in _FORBIDDEN_TAGS or "pwn" in tag:
            yield f"the report has <{tag}>"
        for name, value in attributes:
            address = name in ("src", "href", "xlink:href", "action") and not (value or "").startswith(("data:", "#"))
            if address or name.startswith("on") or "pwn" in name:
                yield f"the report has {name}={(value or '')[:60]!r}"


_FILE_CHECKS = {".md": _check_markdown, ".xml": _check_junit, ".html": _check_page}
