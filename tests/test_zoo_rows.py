"""Rows of the zoo are kept one by one, made again when something changed, and survive a child's crash."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.zoo import models, rows
from benchmarks.zoo.__main__ import is_missing
from benchmarks.zoo.page import format_page
from benchmarks.zoo.rows import Case, Row, Store, digest_stamp, list_cases, make_stamp
from benchmarks.zoo.supervising import make_all
from tests import zoo_children

A, B, C = (Case("textbook", "module", target, precision) for target, precision in rows.TARGETS.items())
STAMP = {"package": "1" * 40, "cpu": "a CPU", "isa": ["avx2"], "threads": 2, "versions": {"torch": "2"}}
NAME = digest_stamp(STAMP)


def row(case: Case, **facts: object) -> Row:
    figures = {"seconds": 1.0, "attentions": 2, "sites": 2, "raised": 2, "fused": 2, "difference": 1e-7} | facts
    return Row(*case, stamp=NAME, **figures)  # type: ignore[arg-type]


def test_every_finished_row_is_kept_and_a_line_that_was_cut_off_is_not(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    store = Store(path)
    store.add(row(A), STAMP)
    store.add(row(B, error="crashed", sites=None), STAMP)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"model": "textb')
    assert Store(path).rows == {A: row(A), B: row(B, error="crashed", sites=None)}
    assert Store(path).stamps == {NAME: STAMP}
    assert len(path.read_text(encoding="utf-8").splitlines()) == 4


def test_the_last_row_of_a_case_counts_and_the_others_go(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    store = Store(path)
    for fused in (1, 2):
        store.add(row(A, fused=fused), STAMP)
    store.add(row(Case("gone", *A[1:])), STAMP)
    store.compact([B, A])
    assert Store(path).rows == {A: row(A, fused=2)}
    assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_two_processes_may_make_rows_at_once(tmp_path: Path) -> None:
    one, other = (Store(tmp_path / "rows.jsonl") for _ in range(2))
    one.add(row(A), STAMP)
    other.add(row(B), STAMP)
    one.compact([A, B])
    assert one.rows == Store(one.path).rows == {A: row(A), B: row(B)}


def test_a_row_of_other_code_is_made_again_unless_it_is_kept() -> None:
    other = digest_stamp({**STAMP, "package": "2" * 40})
    assert not is_missing(row(A), NAME, keep=False)
    assert is_missing(row(A), other, keep=False)
    assert not is_missing(row(A), other, keep=True)
    assert is_missing(None, other, keep=True)


def test_the_tree_changes_with_the_package_and_with_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*words: str) -> None:
        names = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *names, *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "vitdeploy").mkdir()
    (tmp_path / "vitdeploy" / "a.py").write_text("1", encoding="utf-8")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    monkeypatch.setattr(rows, "_ROOT", tmp_path)
    first = rows.find_package_tree()
    (tmp_path / "README").write_text("1", encoding="utf-8")
    assert rows.find_package_tree() == first
    (tmp_path / "vitdeploy" / "b.py").write_text("not committed", encoding="utf-8")
    assert rows.find_package_tree() != first
    (tmp_path / "vitdeploy" / "b.py").unlink()
    assert rows.find_package_tree() == first
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tmp_path, check=True, capture_output=True, text=True)
    assert status.stdout == "?? README\n"


def test_the_stamp_names_cpu_and_versions() -> None:
    stamp = make_stamp()
    assert stamp["cpu"]
    assert {"torch", "timm", "transformers"} <= stamp["versions"].keys()


@pytest.mark.parametrize(
    ("work", "error"),
    [(zoo_children.crash, "crashed with SIGSEGV"), (zoo_children.sleep, "took more than 9 s")],
    ids=["crash", "sleep"],
)
def test_a_child_that_ends_costs_one_row(work: Callable[..., None], error: str) -> None:
    made = list(make_all([A, B, C], limit=9, work=work))
    assert [r.case for r in made] == [A, B, C]
    assert [r.error for r in made] == ["", error, ""]


def test_every_model_has_all_rows() -> None:
    assert len(models.MODELS) >= 70
    cases = list_cases(["textbook"])
    assert len(cases) == 3 * 3 + 2
    assert len(set(cases)) == len(cases)


def test_the_page_names_everything_that_is_not_whole() -> None:
    made = {
        A: row(A, norms=4, norms_fused=4),
        B: row(B, fused=1, unfused={"the map is read": 1}, norms=4, norms_fused=3, unfused_norms={"2 kernels": 1}),
        C: row(C, error="crashed with SIGSEGV"),
    }
    int8 = Case("textbook", "module", "openvino", "int8")
    made[int8] = row(int8, weights_pct=40.0, outside={"the head stays": 12.5})
    wrong = Case("textbook", "onnx 17", "openvino", "fp32")
    made[wrong] = row(wrong, difference=0.1)
    other_error = Case("textbook", "onnx 17", "tensorrt-rtx", "fp16")
    made[other_error] = row(other_error, error="crashed with SIGSEGV")
    page = format_page(made, {NAME: STAMP}, {name: models.MODELS[name] for name in ("textbook", "hf vit (sdpa)")})
    for line in (
        "6 rows: `vitdeploy/` of git tree 1111111111; a CPU, 2 threads, avx2; torch 2.",
        "Not run at this commit: hf vit (sdpa).",
        "| textbook | 2 | 2 of 2, 1 of 2, – | 2 of 2, …, – | … | **1e-01** | 4 of 4, 3 of 4, – |",
        "| textbook | OpenVINO | 2 of 2 | 40.0 % | – | the head stays: 12.5 % |",
        "| textbook | 1 | module: ONNX Runtime fp32 | the map is read |",
        "| textbook | 1 | module: ONNX Runtime fp32 | 2 kernels |",
        "| textbook | onnx 17: OpenVINO fp32 | differs by 1e-01 |",
        "| textbook | module, onnx 17: TensorRT-RTX fp16 | crashed with SIGSEGV |",
    ):
        assert line in page.splitlines(), line
