"""The documentation as a site: it builds strictly and loads nothing from elsewhere; its references have everything."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import vitdeploy
from tests.conftest import shared_folder
from tests.test_docs import COMMANDS, PAGES, anchors, flags, prose, recipe_keys
from vitdeploy import precision, targets, tasks
from vitdeploy.plugins import names

ROOT = Path(__file__).parents[1]
REMOTE = re.compile(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+"')


def build(repository: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    # Without --quiet, which also hides the warnings from --strict.
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once for all workers."""
    out = shared_folder(tmp_path_factory) / "site"
    with FileLock(f"{out}.lock"):
        if not (out / "built").exists():
            done = build(ROOT, out)
            assert done.returncode == 0, done.stderr
            (out / "built").touch()
    return out


def text_of(page: Path) -> str:
    """The text of a page, without its tags."""
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_every_page_of_the_repository_is_there(site: Path) -> None:
    pages = [page for page in PAGES if ".github" not in page.parts]
    titles = {re.sub(r"[`*]", "", prose(page).partition("\n")[0].removeprefix("# ")) for page in pages}
    built = {" ".join(re.findall(r"<h1[^>]*>(.*?)<a", page.read_text("utf-8"))) for page in site.rglob("*.html")}
    shown = {re.sub(r"<[^>]+>", "", title) for title in built}
    assert {title.replace("&", "&amp;") for title in titles} <= shown


def test_nothing_is_loaded_from_another_server(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    assert not [(page.name, found) for page in pages for found in REMOTE.findall(page.read_text(encoding="utf-8"))]
    assert "url(//" not in (site / "style.css").read_text(encoding="utf-8")


def test_markdown_that_only_github_understands_is_not_left_over(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = re.sub(r"<(pre|code).*?</\1>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.search(r"<(?:p|td)>[^<]*\n(?:[-*] |\d+\. |\| )|```|\]\([^)\s]+\.md", text), page.name


def test_the_command_reference_has_every_option(site: Path) -> None:
    page = site / "command-reference.html"
    parts = re.split(r'<h2 id="vitdeploy-', page.read_text(encoding="utf-8"))
    sections = {part.partition('"')[0]: part for part in parts[1:]}
    assert sections.keys() == COMMANDS.keys()
    shared = {"--json", "--quiet", "--traceback"}
    for name, command in COMMANDS.items():
        shown = set(re.findall(r"<code>(-[\w-]+)</code>", sections[name]))
        assert shown == flags(command) - shared - {"--help"}, name
    assert shared <= set(re.findall(r"<code>(-[\w-]+)</code>", parts[0]))


def test_the_recipe_reference_has_every_key_choice_and_meaning(site: Path) -> None:
    html = (site / "recipe-reference.html").read_text(encoding="utf-8")
    cells = [re.findall(r"<td>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]
    shown = {re.sub(r"<[^>]+>", "", row[0]): row[1:] for row in cells if row}
    options = {f"target.{key}" for name in targets.names() for key in targets.kind_of(name).model_fields}
    options |= {f"task.{key}" for name in names(tasks) for key in (tasks.kind_of(name) or targets.Target).model_fields}
    assert shown.keys() == recipe_keys() | options
    assert not [key for key, row in shown.items() if len(re.sub(r"<[^>]+>|–", "", row[-1])) < 5]
    kinds = set(re.findall(r"<code>(.*?)</code>", shown["precision.kind"][2]))
    assert kinds == {*precision.names(), "auto"}
    assert shown["target.batch"][1] == "<code>1</code>"
    assert shown["gate.min_fused_pct"][2] == "&gt; 0, ≤ 100"


def test_the_python_reference_has_every_public_name(site: Path) -> None:
    text = (site / "python-reference.html").read_text(encoding="utf-8")
    titles = set(re.findall(r'<h3 id="[\w.]*?(\w+)"', text))
    assert {name for name in vitdeploy.__all__ if not name.startswith("_")} <= titles
    assert {"Pass", "Target", "Precision", "Task", "Source"} <= titles
    assert "the most that may be lost" in text_of(site / "python-reference.html")  # of a docstring


def test_headings_have_the_anchors_of_github(site: Path) -> None:
    for page in ("cli", "decisions", "evidence", "ci"):
        built = set(re.findall(r'<h[1-6] id="([^"]+)"', (site / f"{page}.html").read_text(encoding="utf-8")))
        assert built == anchors(ROOT / "docs" / f"{page}.md"), page


def test_a_broken_link_and_a_broken_anchor_end_the_build(tmp_path: Path) -> None:
    """The same configuration and hook, with two pages and nothing generated."""
    shutil.copytree(ROOT / "website", tmp_path / "website", ignore=shutil.ignore_patterns("__pycache__"))
    hook = tmp_path / "website" / "hook.py"
    text = hook.read_text(encoding="utf-8")
    hook.write_text(re.sub(r"^GENERATED = \{.*?^\}", "GENERATED = {}", text, flags=re.M | re.S), encoding="utf-8")
    config = re.sub(r"^watch:.*\n", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    pages = "nav: [README.md, docs/a.md]\n"
    (tmp_path / "mkdocs.yml").write_text(config[: config.index("nav:\n")] + pages, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# A\n\n## There\n", encoding="utf-8")
    readme = tmp_path / "README.md"
    readme.write_text("# R\n\n[a](docs/a.md#there)\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    readme.write_text("# R\n\n[a](docs/b.md) [b](docs/a.md#elsewhere) [c](docs)\n", encoding="utf-8")
    done = build(tmp_path, tmp_path / "out")
    assert done.returncode == 1
    assert all(link in done.stderr for link in ("'docs/b.md'", "'#elsewhere'", "'docs'")), done.stderr
