"""The documentation says what the code does: links lead somewhere, and no option, key or layer is missing or gone."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest
import tomllib
import typer
from importlinter.api import read_configuration
from PIL import Image
from pydantic import BaseModel

from tests.cli.contract import ANSWERS, _load
from vitdeploy import precision, sources, targets, tasks
from vitdeploy.cli import app
from vitdeploy.commands.bench.opponents import opponent_names
from vitdeploy.commands.predict import Predictions
from vitdeploy.evidence import Scenario
from vitdeploy.measure import conditions, doubts
from vitdeploy.plugins import forms_in, names
from vitdeploy.recipe import ModelSpec, Recipe, TargetSpec

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.rglob("*.md"),
        *ROOT.glob("benchmarks/**/*.md"),
        *ROOT.glob("examples/*.md"),
        *ROOT.glob(".github/*.md"),
    ]
)
COMMANDS = {name: command for name, command in typer.main.get_command(app).commands.items() if not command.hidden}
UsageError = typer.BadParameter.__bases__[0]  # typer brings a click of its own
SHARED = {"--json", "--quiet", "--traceback", "--help"}


def prose(page: Path) -> str:
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    found: list[str] = []
    for title in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.append(f"{slug}-{found.count(slug)}" if slug in found else slug)
    return set(found)


def links(page: Path) -> Iterator[str]:
    """The relative links and images of a page."""
    text = re.sub(r"`[^`\n]*`", "", prose(page))
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'(?:src|href)="([^"]+)"', text)]:
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_and_anchors_resolve(page: Path) -> None:
    broken = []
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists() or (anchor and anchor not in anchors(place)):
            broken.append(target)
    assert not broken


def test_the_link_check_sees_links() -> None:
    assert {"docs/tutorial.md", "docs/cli.md", "docs/tutorials/detector.md"} <= set(links(ROOT / "README.md"))
    assert "vitdeploy-export" in anchors(DOCS / "cli.md")
    assert "nowhere" not in anchors(DOCS / "cli.md")


@pytest.mark.parametrize(
    "page", [*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"], ids=lambda p: p.name
)
def test_files_of_the_code_that_a_page_names_exist(page: Path) -> None:
    named = {
        code for code in re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|json|toml|yml))`", prose(page)) if "NAME" not in code
    }
    near = {path for path in named if not any((ROOT / base / path).exists() for base in ("", "vitdeploy", "docs"))}
    assert near <= {"tests/passes/test_x.py", "vitdeploy/passes/x.py", "depth/a.npy",
                    "street/annotations.json", "colleague/manifest.json"}  # fmt: skip


def test_the_index_lists_every_page() -> None:
    listed = {target.partition("#")[0] for target in links(DOCS / "README.md")}
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - {"README.md"} <= listed


def test_the_front_page_is_short_and_names_the_test_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert "make test" in text
    for name in (*targets.names(), *precision.names(), "auto"):
        assert f"`{name}`" in text, name
    for name in names(sources):
        form = f"FILE.{name.removesuffix('file')}" if name.endswith("file") else f"{name}:"
        assert form in text, form


def section(page: str | Path, title: str) -> str:
    """The text of a page from a heading to the next one of the same level or above."""
    text = (DOCS / page).read_text(encoding="utf-8")
    head = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert head is not None, f"{page} has no section {title!r}"
    rest = text[head.end() :]
    end = re.search(rf"^#{{1,{len(head[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the tables whose first header is `head`."""
    found: list[list[str]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif cells[0] == head:
            inside = True
        elif inside and not line.startswith("|---"):
            found.append(cells)
    return found


def codes(cell: str) -> set[str]:
    """What a cell has in backticks."""
    return set(re.findall(r"`([^`]+)`", cell))


def flags(command: Any) -> set[str]:
    return {flag for p in command.params if not getattr(p, "hidden", False) for flag in p.opts if flag.startswith("-")}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_every_option_of_a_command(name: str) -> None:
    told = {flag for row in rows(section("cli.md", f"vitdeploy {name}"), "option") for flag in codes(row[0])}
    assert told == flags(COMMANDS[name]) - SHARED


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "recipes"])
def test_the_reference_has_every_json_key_of_a_command(name: str) -> None:
    told = {key for row in rows(section("cli.md", f"vitdeploy {name}"), "JSON key") for key in codes(row[0])}
    keys = set(Predictions.model_fields) if name == "predict" else set(_load(ANSWERS[name]).model_fields)
    assert told == keys


def grouped_options(text: str) -> dict[str, str]:
    """Return the group of each option of a section: the bold line above its table; "Options" without one."""
    groups: dict[str, str] = {}
    title = "Options"
    for line in text.splitlines():
        if bold := re.fullmatch(r"\*\*(.+)\*\*", line):
            title = bold[1]
        elif line.startswith("| `-"):
            groups |= dict.fromkeys(codes(line.split(" | ")[0]), title)
    return groups


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_groups_options_as_the_help_does(name: str) -> None:
    shown = [p for p in COMMANDS[name].params if p.param_type_name == "option" and not p.hidden]
    expected = {flag: p.rich_help_panel or "Options" for p in shown for flag in p.opts if flag not in SHARED}
    assert grouped_options(section("cli.md", f"vitdeploy {name}")) == expected


def shown_commands(text: str) -> list[str]:
    """Return the `vitdeploy` commands in the code blocks of a page. Comments and prompts are left out."""
    lines = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if command := re.match(r"(?: *- |\w*\$ +)?(vitdeploy [a-z].*)", line):
                lines.append(" ".join(re.split(r" +#| \|\| ", command[1])[0].split()))
    return lines


@pytest.mark.parametrize("name", COMMANDS)
def test_the_reference_has_the_examples_of_the_help(name: str) -> None:
    help_text = (COMMANDS[name].epilog or "").replace("\\\n", " ")
    examples = [" ".join(line[2:].split("  #")[0].split()) for line in help_text.splitlines() if line.startswith("$ ")]
    assert [
        line for line in shown_commands((DOCS / "cli.md").read_text(encoding="utf-8")) if line.split()[1] == name
    ] == examples


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_on_the_pages_are_accepted(page: Path) -> None:
    for line in shown_commands(page.read_text(encoding="utf-8")):
        words = [word for word in shlex.split(line)[1:] if word not in (">", "…")]
        if words[0] not in COMMANDS:
            assert words[0] == "device", line
            continue
        if ">" in line:
            words = words[:-1]
        try:
            COMMANDS[words[0]].make_context(words[0], words[1:])
        except UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


def test_the_command_check_sees_a_wrong_option() -> None:
    assert shown_commands("```\n$ vitdeploy bench deit --second 3   # wrong\n```\n") == [
        "vitdeploy bench deit --second 3"
    ]
    with pytest.raises(UsageError):
        COMMANDS["bench"].make_context("bench", ["deit", "--second", "3"])


def test_the_reference_has_every_choice() -> None:
    export, bench = section("cli.md", "vitdeploy export"), section("cli.md", "vitdeploy bench")
    for choice in (*targets.names(), *precision.names(), "auto", *names(tasks), "normalized", "pixels", "uint8"):
        assert f"`{choice}`" in export, choice
    for choice in (*get_args(Scenario), *opponent_names()):
        assert f"`{choice}`" in bench, choice


def test_the_reference_has_every_command_and_exit_code() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## vitdeploy (\S+)$", text, re.MULTILINE)) == set(COMMANDS)
    assert {row[0] for row in rows(section("cli.md", "Exit codes"), "code")} == {"0", "1", "2", "3", "130"}


def recipe_keys() -> set[str]:
    """The keys of a recipe, `section.key`."""
    found = set()
    for name, field in Recipe.model_fields.items():
        kinds = [k for k in (field.annotation, *get_args(field.annotation)) if isinstance(k, type)]
        kind = next(k for k in kinds if issubclass(k, BaseModel))
        found |= {f"{name}.{key}" for key in kind.model_fields}
    return found


def test_every_key_of_a_recipe_is_described() -> None:
    assert {key for row in rows(section("recipes.md", "Keys"), "key") for key in codes(row[0])} == recipe_keys()


def test_every_option_of_a_target_is_described() -> None:
    told = {(target, key) for row in rows(section("recipes.md", "target"), "target") for target in codes(row[0])
            for key in codes(row[1])}  # fmt: skip
    options = {(name, key) for name in targets.names() for key in targets.kind_of(name).model_fields if key != "device"}
    assert {(name, key) for name, key in options if key != "threads"} == {t for t in told if t[1] != "threads"}


def test_every_option_of_a_task_is_described() -> None:
    told = {(row[0].strip("`"), key) for row in rows(section("tasks.md", "Options"), "kind") for key in codes(row[1])}
    kinds = {name: tasks.kind_of(name) for name in names(tasks)}
    assert told == {(name, key) for name, kind in kinds.items() if kind for key in kind.model_fields}


def test_precisions_are_those_of_the_targets() -> None:
    table = {row[0].strip("`"): codes(row[-1]) for row in rows(section("precisions.md", "All of them"), "precision")}
    offered = {name: precision.names_for(targets.find(TargetSpec(kind=name))) for name in targets.names()}
    assert table == {name: {target for target, able in offered.items() if name in able} for name in precision.names()}
    needing = {row[0].strip("`") for row in rows(section("precisions.md", "All of them"), "precision")
               if row[4] == "needed"}  # fmt: skip
    assert needing == {name for name in precision.names() if precision.kind_of(name).needs_images}


def test_the_limits_of_a_measurement_are_those_of_the_code() -> None:
    limits = {row[1].partition(" of ")[0] for row in rows(section("evidence.md", "Speed"), "what")}
    shares = (conditions.MAX_OTHERS_SHARE, conditions.MAX_STEAL_SHARE, conditions.MAX_CLOCK_CHANGE, doubts.MAX_SPREAD,
              doubts.MAX_DRIFT)  # fmt: skip
    expected = {f"{100 * share:.0f} %" for share in shares} | {f"{conditions.MAX_SWITCHES:.0f} times a second"}
    assert limits == expected | {f"in {100 * conditions.MAX_THROTTLED_SHARE:.0f} %", "never allowed"}


def test_the_layers_in_architecture_are_those_that_are_held() -> None:
    contracts = read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    block = re.search(r"```\n(.*?)```", section("architecture.md", "Layers"), re.DOTALL)
    assert block is not None
    drawn = [re.split(r" {2,}", line)[0] for line in block[1].splitlines() if not line.startswith(" ")]
    assert drawn == layers


def test_every_pass_is_listed() -> None:
    text = section("architecture.md", "The passes")
    files = {path.stem for path in (ROOT / "vitdeploy" / "passes").glob("[!_]*.py")} - {"order"}
    assert set(re.findall(r"`(\w+)`", text)) >= files


@pytest.mark.parametrize(
    ("title", "kind"),
    [
        ("Add a precision", precision.Precision),
        ("Add a target", targets.Target),
        ("Add a task", tasks.Task),
        ("Add a source", sources.Source),
    ],
)
def test_the_hooks_in_contributing_are_those_of_the_base_class(title: str, kind: type[Any]) -> None:
    text = section(ROOT / "CONTRIBUTING.md", title)
    heads = ("you write", "you may write", "attribute")
    told = {name for head in heads for row in rows(text, head) for name in codes(row[0])}
    must = {name for row in rows(text, "you write") for name in codes(row[0])}
    also = re.search(r"^You may also write .*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
    told |= {name for name in codes(also[0].replace("\n", " ")) if name.isidentifier()} if also else set()
    assert not {name for name in told if not has_member(kind, name)}
    if must:
        assert kind.__abstractmethods__ <= must
    else:
        assert kind.__abstractmethods__ <= codes(text)


def has_member(kind: type[Any], name: str) -> bool:
    """Return whether a class has a method, a field or an annotated attribute of this name."""
    return hasattr(kind, name) or name in kind.model_fields or name in kind.__annotations__


def test_the_bases_of_a_precision_need_what_contributing_says() -> None:
    bases = rows(section(ROOT / "CONTRIBUTING.md", "Add a precision"), "base (in `vitdeploy/calibrate/`)")
    assert len(bases) == 4
    for cell, _, methods in bases:
        name, file = re.findall(r"`(\w+)(?:\.py)?`", cell)
        kind = getattr(import_module(f"vitdeploy.calibrate.{file}"), name)
        told = codes(methods)
        assert not {method for method in told - {"numbers"} if not has_member(kind, method)}, name
        assert kind.__abstractmethods__ <= told, name


def test_the_example_of_a_precision_is_that_of_the_package() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```", section(ROOT / "CONTRIBUTING.md", "Add a precision"), re.M | re.S)
    assert example in (ROOT / "vitdeploy" / "precision" / "int8_bf16.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("title", "files"),
    [
        ("A pass", ("vitdeploy/passes/fold_layer_scale.py", "tests/passes/test_fold_layer_scale.py")),
        ("A target", ("tests/toys/interpreter.py",)),
        ("A precision", ("tests/toys/rounded.py",)),
    ],
)
def test_the_examples_of_what_can_be_added_are_those_that_tests_run(title: str, files: tuple[str, ...]) -> None:
    examples = re.findall(r"^```python\n(.*?)^```", section("extending.md", title), re.MULTILINE | re.DOTALL)
    assert len(examples) == len(files)
    for example, file in zip(examples, files, strict=True):
        assert example in (ROOT / file).read_text(encoding="utf-8"), file


def test_the_sizes_of_installations_are_those_that_were_measured() -> None:
    cells = rows((ROOT / "benchmarks" / "install_sizes.md").read_text(encoding="utf-8"), "install")
    measured = {row[0]: row[1] for row in cells}
    told = {row[1]: row[2] for row in rows(section("installation.md", "What to install"), "you want to")}
    assert told == measured
    cuda = next(row[2] for row in cells if row[0] == "`vitdeploy[export]`")
    assert f"{cuda} of the {measured['`vitdeploy[export]`']} GB" in section(
        "installation.md", "PyTorch for the CPU only"
    ).replace("\n", " ")


def test_every_extra_is_described() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = {row[1] for row in rows(section("installation.md", "What to install"), "you want to")}
    assert {f"`vitdeploy[{extra}]`" for extra in project["optional-dependencies"]} <= told


def test_the_forms_of_a_model_are_those_of_the_sources() -> None:
    assert {code for row in rows(section("cli.md", "MODEL"), "form") for code in codes(row[0])} == set(
        forms_in("sources")
    )


def messages() -> list[str]:
    """The texts of the package except docstrings. What an f-string fills in is written as `…`."""
    texts = []
    for path in (ROOT / "vitdeploy").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
                texts.append(node.value)
    return texts


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    heads = ("error", "reason", "error or note")
    quoted = [code for head in heads for row in rows(text, head) for code in codes(row[0])]
    assert len(quoted) > 50
    texts = messages()
    parts = {message: ".*".join(re.escape(part) for part in message.strip("…: ").split("…")) for message in quoted}
    assert not [m for m, part in parts.items() if not any(re.search(part, known, re.DOTALL) for known in texts)]


def blocks(page: str | Path, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_model_of_the_tutorial_loads_and_its_script_compiles(tmp_path: Path) -> None:
    model, script = blocks("tutorial.md", "python")
    compile(script, "tutorial.md", "exec")
    (tmp_path / "my_vit.py").write_text(model, encoding="utf-8")
    loaded = sources.load(ModelSpec(spec=f"python:{tmp_path / 'my_vit.py'}:build", weights="random"))
    assert (loaded.preprocess.size, loaded.labels) == ((32, 32), tuple("0123456789"))


def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, in their order, with the demo in place of what needs a download, and without long measurements."""
    shown = blocks("python.md", "python")
    assert len(shown) > 2
    script = "\n".join(shown)
    for long, short in {
        '"timm:deit_tiny_patch16_224", target="openvino"': '"demo:digits", target="onnxruntime"',
        'data="val/"': 'data="demo:digits", limit=40',
        "seconds=10": "seconds=0.3",
        'tune_streams("deit")': 'tune_streams("deit", threads=2)',  # a worker of the tests may have one core
    }.items():
        assert long in script
        script = script.replace(long, short)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in ("cat.jpg", "photos/cat.jpg", "photos/dog.jpg"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    exec(compile(script, "python.md", "exec"), {"__name__": "shown"})
    assert (tmp_path / "answers" / "dog.png").exists()
    assert (tmp_path / "deit" / "report.html").exists()


def test_the_recipes_in_the_documentation_are_recipes() -> None:
    from vitdeploy import yaml12

    whole = [raw for page in DOCS.rglob("*.md") for text in blocks(page, "yaml")
             if isinstance(raw := yaml12.loads(text), dict) and {"model", "target"} <= raw.keys()]  # fmt: skip
    assert whole
    for raw in whole:
        Recipe.model_validate(raw)
