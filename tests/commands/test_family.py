"""SAM as a family of two artifacts: made whole, run in turn, equal to the whole model, and refused when it is torn."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from PIL import Image
from typer.testing import CliRunner

transformers = pytest.importorskip("transformers")

from benchmarks.promptable_models import build_sam, save  # noqa: E402
from tests.commands.signing.conftest import Pair, write_pair  # noqa: E402
from vitdeploy.artifact.family import Family, load_family  # noqa: E402
from vitdeploy.cli import app  # noqa: E402
from vitdeploy.commands.family.export import FamilyResult, export_family  # noqa: E402
from vitdeploy.commands.family.gate import judge_family_again  # noqa: E402
from vitdeploy.commands.family.predict import parse_prompts  # noqa: E402
from vitdeploy.commands.signing.keys import read_private  # noqa: E402
from vitdeploy.commands.signing.model_signature import sign_files  # noqa: E402
from vitdeploy.commands.signing.subject import of_family  # noqa: E402
from vitdeploy.data.point_prompts import Prompt  # noqa: E402
from vitdeploy.data.synthetic import natural_image  # noqa: E402
from vitdeploy.errors import ArtifactError, CompileError, UsageError, VitdeployError  # noqa: E402
from vitdeploy.evidence import Gate  # noqa: E402
from vitdeploy.pipeline import pair as pairs  # noqa: E402
from vitdeploy.progress import Silent  # noqa: E402
from vitdeploy.recipe import Preprocess, compose  # noqa: E402
from vitdeploy.runtime.segmenter import Segmenter  # noqa: E402
from vitdeploy.tasks.promptable_masks import measure_overlap  # noqa: E402

PROMPTS = (
    Prompt(((100.0, 60.0),), (True,)),
    Prompt(((40.0, 90.0), (150.0, 30.0), (8.0, 8.0)), (True, True, False)),
    Prompt(box=(30.0, 20.0, 160.0, 110.0)),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save(build_sam, folder)
    return folder


@pytest.fixture(scope="module")
def result(model: Path, tmp_path_factory: pytest.TempPathFactory) -> FamilyResult:
    recipe = compose(f"hf:{model}", target="onnxruntime")
    return export_family(recipe, tmp_path_factory.mktemp("out") / "sam", Silent())


@pytest.fixture
def copy(result: FamilyResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result.family.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photograph-like image that is wider than high, so that SAM pads it."""
    pixels = natural_image(3, Preprocess(size=(120, 200)), 1)[0]
    path = tmp_path_factory.mktemp("images") / "wide.png"
    Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return path


def run(*words: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, [*words, "--quiet"])
    return answer.exit_code, answer.output


def read(output: str) -> Any:
    """Return the JSON in an output, which may have notes around it."""
    return json.JSONDecoder().raw_decode(output[output.index("{\n") :])[0]


def test_the_pair_equals_the_whole_model_for_every_kind_of_prompt(result: FamilyResult) -> None:
    record = result.family.record
    assert record.parity is not None
    assert record.parity.batches == (1, 1, 1, 1)
    names = [case[0].where for case in record.parity.cases]
    assert [name.split(" on ")[0] for name in names] == ["1 point", "3 points", "a box", "14 points and a box"]
    assert {output.name for output in record.parity.outputs} == {"pred_masks", "iou_scores"}
    assert all(output.max_abs < 1e-5 * output.reference_max for output in record.parity.outputs)
    assert record.mask_iou == pytest.approx(1, abs=1e-3)
    assert record.links == {"image_embeddings": "encoder.image_embeddings"}
    assert "not exported" in record.memory
    assert sorted(path.name for path in result.family.path.iterdir()) == [
        "decoder", "encoder", "examples.npz", "family.json",
    ]  # fmt: skip


def test_masks_at_the_size_of_the_image_are_those_of_transformers(
    result: FamilyResult, model: Path, picture: Path
) -> None:
    own = transformers.SamModel.from_pretrained(model).eval()
    processor = transformers.SamProcessor(transformers.SamImageProcessor.from_pretrained(model))
    image = Image.open(picture)
    with Segmenter(result.family.path) as segmenter:
        segments = segmenter.segment(image, PROMPTS)
    for prompt, segment in zip(PROMPTS, segments, strict=True):
        given: dict[str, Any] = {}
        if prompt.points:
            given["input_points"] = [[[list(point) for point in prompt.points]]]
            given["input_labels"] = [[[int(on) for on in prompt.foreground]]]
        if prompt.box is not None:
            given["input_boxes"] = [[list(prompt.box)]]
        inputs = processor(images=image, return_tensors="pt", **given)
        with torch.inference_mode():
            outputs = own(**inputs)
        masks = processor.image_processor.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        best = int(outputs.iou_scores.argmax())
        expected = masks[0][0, best].numpy()
        assert segment.mask.shape == expected.shape == (120, 200)
        assert 0.05 < expected.mean() < 0.95
        assert measure_overlap(segment.mask, expected) > 0.998
        assert segment.score == pytest.approx(float(outputs.iou_scores.max()), abs=2e-3)


def test_the_encoder_runs_once_for_each_image(
    result: FamilyResult, picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Segmenter(result.family.path) as segmenter:
        encoder: Any = segmenter._pair._encoder
        runs: list[Any] = []
        original = encoder.run
        monkeypatch.setattr(encoder, "run", lambda feeds: runs.append(1) or original(feeds))
        assert len(segmenter.segment(Image.open(picture), PROMPTS)) == 3
    assert len(runs) == 1


def test_predict_prints_and_draws_masks(result: FamilyResult, picture: Path, tmp_path: Path) -> None:
    words = ("--points", "100,60", "--points", "40,90;150,30,1;8,8,0", "--save", str(tmp_path / "drawn"))
    code, output = run("predict", str(result.family.path), str(picture), *words, "--json")
    assert code == 0
    (prediction,) = read(output)["predictions"]
    assert prediction["task"] == "promptable-masks"
    assert len(prediction["instances"]) == len(prediction["masks"]) == 2
    with Segmenter(result.family.path) as segmenter:
        segments = segmenter.segment(Image.open(picture), PROMPTS[:2])
    for instance, runs, segment in zip(prediction["instances"], prediction["masks"], segments, strict=True):
        inside = np.repeat(np.arange(len(runs["counts"])) % 2 == 1, runs["counts"])
        np.testing.assert_array_equal(inside.reshape(200, 120).T, segment.mask)
        assert instance["area"] == segment.mask.sum()
    with Image.open(prediction["saved"]) as drawn:
        assert drawn.width / drawn.height == pytest.approx(200 / 120, rel=0.02)
    code, output = run("predict", str(result.family.path), str(picture), "--box", "30,20,160,110")
    assert code == 0
    assert "prompt 1:" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "needs a prompt"),
        (("--points", "300,20"), "is outside of the image, which is 200 wide and 120 high"),
        (("--box", "50,50,20,20"), "the box 50,50,20,20 is empty"),
        (("--points", "a"), "has no point in 'a'"),
        (("--box", "1,2,3"), "is no box"),
        (("--points", "1,1", "--points", "2,2", "--box", "1,1,2,2"), "make no pairs"),
        (("--points", ";".join(["5,5"] * 17)), "does not fit"),
    ],
)
def test_bad_prompts_are_one_line(result: FamilyResult, picture: Path, words: tuple[str, ...], message: str) -> None:
    code, output = run("predict", str(result.family.path), str(picture), *words)
    assert code == 1
    assert message in " ".join(output.split())


def test_parts_alone_take_no_prompts(result: FamilyResult, picture: Path) -> None:
    for words in ((), ("--points", "5,5")):
        code, output = run("predict", str(result.family.path / "decoder"), str(picture), *words)
        assert code == 1
        assert "without its encoder it takes no image" in " ".join(output.split())
    code, output = run("predict", str(result.family.path / "encoder"), str(picture), "--points", "5,5")
    assert code == 1
    assert "takes images, and no points or boxes" in " ".join(output.split())


def test_a_decoder_without_its_encoder_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "encoder")
    with pytest.raises(ArtifactError, match=r"has no encoder: .* a decoder alone answers nothing"):
        load_family(copy)


def test_parts_of_different_models_are_refused(copy: Path, tmp_path: Path) -> None:
    other = save(build_sam, tmp_path / "other")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.9)
    other.save_pretrained(tmp_path / "other")  # type: ignore[operator]
    place = tmp_path / "part"
    spec, options = f"hf:{tmp_path / 'other'}", ("--target", "onnxruntime", "--part", "decoder")
    code, output = run("export", spec, *options, "-o", str(place))
    assert code == 0, output
    shutil.rmtree(copy / "decoder")
    shutil.move(place, copy / "decoder")
    with pytest.raises(ArtifactError, match="is not the decoder that this family was made with"):
        load_family(copy)


def test_a_changed_family_is_refused(copy: Path) -> None:
    (copy / "examples.npz").write_bytes(b"changed")
    with pytest.raises(ArtifactError, match=r"examples\.npz is missing or was changed"):
        load_family(copy)
    facts = json.loads((copy / "family.json").read_text())
    (copy / "family.json").write_text(json.dumps({**facts, "links": {"image_embeddings": "encoder.nothing"}}))
    with pytest.raises(ArtifactError, match=r"connects encoder\.nothing with image_embeddings"):
        load_family(copy)
    (copy / "family.json").write_text(json.dumps({**facts, "schema_version": 9}))
    with pytest.raises(ArtifactError, match="has family schema 9"):
        load_family(copy)


def test_nothing_is_written_beside_a_family_that_was_replaced(copy: Path) -> None:
    family = load_family(copy)
    (copy / "family.json").write_text("{}")
    with pytest.raises(ArtifactError, match="was replaced by another family while this command ran"):
        family.write_beside({"gate.json": b"{}"})
    assert not (copy / "gate.json").exists()


def test_commands_for_one_artifact_name_the_parts(result: FamilyResult) -> None:
    code, output = run("debug", str(result.family.path), "--data", "nowhere")
    assert code == 1
    assert "is a family of artifacts" in " ".join(output.split())


def test_a_pair_that_differs_from_the_whole_model_is_refused(result: FamilyResult) -> None:
    family: Family = result.family
    from vitdeploy.pipeline.examples import load_examples

    manifest = family.encoder.manifest
    examples = load_examples(family.examples, manifest.preprocess, "normalized")
    assert [example.further["point_labels"].shape for example in examples] == [(1, 16)] * 4
    checked = pairs.check_pair(family.encoder, family.decoder, family.record.links, examples, Silent())
    assert checked.compiled == family.record.parity
    worse = [one._replace(further={**one.further, "point_coords": one.further["point_coords"] + 9}) for one in examples]
    with pytest.raises(CompileError, match="give other numbers than the whole model"):
        pairs.check_pair(family.encoder, family.decoder, family.record.links, worse, Silent())


@pytest.mark.parametrize(
    ("values", "message"),
    [({"batch": "2"}, "takes one image at a time"), ({"precision": "int8"}, "needs calibration images")],
)
def test_nothing_is_left_behind_by_what_is_refused(
    model: Path, tmp_path: Path, values: dict[str, str], message: str
) -> None:
    with pytest.raises(VitdeployError, match=message):
        export_family(compose(f"hf:{model}", target="onnxruntime", **values), tmp_path / "out", Silent())
    assert list(tmp_path.iterdir()) == []


def test_int8_quantizes_the_encoder_and_leaves_the_decoder_in_float(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8"
    calibration = ("--precision", "int8", "--calibration", str(data / "images"))
    code, output = run("export", f"hf:{model}", "--target", "onnxruntime", *calibration, "-o", str(out), "--json")
    assert code == 0, output
    record = load_family(out).record
    assert {name: part.precision for name, part in record.parts.items()} == {"encoder": "int8", "decoder": "fp32"}
    assert "the decoder stays in float" in record.parts["decoder"].reason
    assert record.parts["encoder"].reason == ""
    assert record.parity is not None
    assert record.graph_parity is not None
    assert 0.9 < record.graph_parity.cosine < 0.999999  # int8 does cost something
    code, output = run("gate", str(out), "--min-quantized", "5", "--json")
    checks = {check["name"]: check["status"] for check in read(output)["checks"]}
    assert checks["encoder: quantized (%)"] == "pass"
    assert "decoder: quantized (%)" not in checks
    assert run("eval", str(out), "--data", str(data))[0] == 0
    code, output = run("gate", str(out), "--max-drop", "5", "--json")
    assert code == 3, output
    assert "3 of the 3 evaluated images are calibration images" in read(output)["checks"][-1]["why"]


def test_prompts_are_read() -> None:
    assert parse_prompts(["1,2;3,4,0"], ["5,6,7,8"]) == [
        Prompt(((1.0, 2.0), (3.0, 4.0)), (True, False), (5.0, 6.0, 7.0, 8.0))
    ]
    with pytest.raises(UsageError, match="has no point"):
        parse_prompts(["1,2,7"], [])


def test_inspect_shows_both_parts_and_the_pair(result: FamilyResult) -> None:
    code, output = run("inspect", str(result.family.path), "--json")
    assert code == 0
    shown = read(output)
    assert {name: audit["attention"]["sites"] for name, audit in shown["parts"].items()} == {"encoder": 2, "decoder": 7}
    assert all(audit["attention"]["fused"] == audit["attention"]["sites"] for audit in shown["parts"].values())
    assert shown["parity"]["cosine"] > 0.99999
    code, output = run("inspect", str(result.family.path))
    assert code == 0
    assert "memory over time: none" in " ".join(output.split())


def test_bench_and_gate_count_both_parts(copy: Path) -> None:
    code, output = run("bench", str(copy), "--seconds", "0.2", "--json")
    assert code == 0, output
    timed = read(output)
    assert set(timed["parts"]) == {"encoder", "decoder"}
    assert [run["role"] for run in timed["pair"]["runs"]] == ["reference", "artifact"]
    assert timed["pair"]["runs"][0]["name"] == "pytorch-fp32"
    family = load_family(copy)
    assert timed["pair"]["manifest"] == family.digest
    assert all((copy / part / "bench.json").is_file() for part in ("encoder", "decoder"))
    sizes = [part.manifest.deployed_bytes or 0 for part in family.parts.values()]
    limits = ("--min-fused", "100", "--max-size", str(sum(sizes) / 2**20 + 0.01))
    code, output = run("gate", str(copy), *limits, "--json")
    assert code == 0, output
    verdict = read(output)
    assert [check["name"] for check in verdict["checks"]] == [
        "pair: parity", "encoder: attention fused", "decoder: attention fused", "pair: size (MiB)",
    ]  # fmt: skip
    assert verdict["digest"] == family.evidence_digest()
    code, output = run("gate", str(copy), "--max-size", str(max(sizes) / 2**20 + 0.01), "--json")
    assert code == 1  # one part alone would pass
    code, output = run("gate", str(copy), "--max-drop", "1", "--json")
    assert code == 3
    assert "there is no eval.json" in output
    code, output = run("gate", str(copy), "--min-speedup", "1e6", "--json")
    assert code in (1, 3)  # 3 on a machine that is busy
    assert read(output)["checks"][-1]["name"] == "pair: speed-up"
    bench = json.loads((copy / "bench.json").read_text())
    runs = [{**run, "blocks": []} for run in bench["runs"]]
    edit(copy / "bench.json", bench, runs=runs, doubts=[], valid=True)
    code, output = run("gate", str(copy), "--min-speedup", "0.0001", "--json")
    assert code == 3
    assert "has no samples of pytorch-fp32" in output
    edit(copy / "bench.json", bench, provenance={**bench["provenance"], "hardware": "0123456789ab"})
    assert "pair: one machine" in [check["name"] for check in gate_size(copy)]
    edit(copy / "bench.json", bench, provenance={**bench["provenance"], "recipe": "0" * 64})
    assert "pair: one recipe" in [check["name"] for check in gate_size(copy)]
    edit(copy / "bench.json", bench, runs=[{**run, "p50_ms": run["p50_ms"] / 2} for run in bench["runs"]])
    assert gate_size(copy)[-2]["name"] == "pair: bench recomputed"


def edit(path: Path, facts: dict[str, Any], **changed: object) -> None:
    """Write evidence with other facts."""
    path.write_text(json.dumps({**facts, **changed}))


def gate_size(family: Path) -> list[dict[str, Any]]:
    """Judge a family by a limit that it keeps, and return the checks of a verdict that is invalid all the same."""
    code, output = run("gate", str(family), "--max-size", "1000", "--json")
    assert code == 3, output
    checks: list[dict[str, Any]] = read(output)["checks"]
    return checks


def test_limits_that_a_family_is_not_judged_by_are_no_pass(copy: Path) -> None:
    family = load_family(copy)
    stored = Gate(verdict="pass", checks=(), digest="", limits={"max_memory_mib": 300, "min_fused_pct": 100})
    verdict = judge_family_again(family, stored)
    assert verdict.verdict == "invalid"
    assert [(check.name, check.status) for check in verdict.checks if check.status != "pass"] == [
        ("max_memory_mib", "invalid")
    ]


def test_a_family_is_not_measured_until_it_is_steady(copy: Path) -> None:
    code, output = run("bench", str(copy), "--sustained", "3")
    assert code == 1
    assert "--sustained is for one artifact, not for a family" in output


@pytest.mark.parametrize("key", ["max_abs", "finite", "cases"])
def test_the_gate_does_not_pass_a_pair_that_differs(copy: Path, key: str) -> None:
    facts = json.loads((copy / "family.json").read_text())
    parity = facts["parity"]
    if key == "max_abs":
        for case in parity["cases"]:
            case[0]["max_abs"] = case[0]["reference_max"]
    else:
        parity[key] = {"finite": False, "cases": []}[key]
    (copy / "family.json").write_text(json.dumps(facts))
    code, output = run("gate", str(copy), "--min-fused", "100", "--json")
    assert code == 3, output
    assert read(output)["checks"][0]["status"] == "invalid"


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("bench", "--profile"), "--profile"),
        (("bench", "--batch", "4"), "--batch"),
        (("gate", "--max-memory", "9"), "max_memory_mib"),
        (("gate", "--baseline", "nowhere"), "--baseline"),
        (("inspect", "--sensitivity"), "--sensitivity"),
        (("compile", "--host", "ssh://nowhere"), "--host"),
    ],
)
def test_what_is_not_for_a_family_is_one_line(result: FamilyResult, words: tuple[str, ...], name: str) -> None:
    command, *options = words
    code, output = run(command, str(result.family.path), *options)
    assert code == 1
    assert name in output
    assert "not for a family" in " ".join(output.split())


def test_a_family_is_compiled_again_in_its_place(copy: Path) -> None:
    before, place = load_family(copy), (copy / "family.json").stat().st_ino
    code, output = run("compile", str(copy), "--json")
    assert code == 0, output
    made = read(output)
    assert made["stage"] == "artifact"
    assert made["parity"]["cosine"] > 0.99999
    after = load_family(copy)
    assert (copy / "family.json").stat().st_ino != place  # it was written anew, and is the same
    assert after.digest == before.digest
    assert after.record.links == before.record.links
    assert after.examples.read_bytes() == before.examples.read_bytes()
    assert sorted(path.name for path in copy.iterdir()) == ["decoder", "encoder", "examples.npz", "family.json"]


def test_a_bundle_of_a_family_is_made_without_the_device(model: Path, tmp_path: Path) -> None:
    code, output = run("export", f"hf:{model}", "--target", "tensorrt", "-o", str(tmp_path / "out"), "--json")
    assert code == 0, output
    made = read(output)
    assert made["stage"] == "bundle"
    assert made["parity"] is None
    assert made["graph_parity"]["cosine"] > 0.9999
    assert made["next"].startswith("vitdeploy compile ")
    family = load_family(tmp_path / "out")
    assert {part.precision for part in family.record.parts.values()} == {"fp16"}
    code, output = run("gate", str(tmp_path / "out"), "--max-size", "9", "--json")
    assert code == 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three made-up images with masks of five objects, and one without any."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    objects = [[(20, 30, 60, 90), (70, 100, 110, 180)], [(10, 10, 50, 60)], [(30, 80, 90, 150), (5, 5, 25, 40)], []]
    images, annotations = [], []
    for number, boxes in enumerate(objects):
        pixels = natural_image(10 + number, Preprocess(size=(120, 200)), 1)[0].transpose(1, 2, 0).copy()
        for top, left, bottom, right in boxes:
            pixels[top:bottom, left:right] = 255 - pixels[top:bottom, left:right]
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "category_id": 0, "segmentation": [corners],
                 "bbox": [left, top, right - left, bottom - top], "area": 1, "iscrowd": 0}
            )  # fmt: skip
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": 120, "width": 200})
    facts = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "thing"}]}
    (root / "annotations.json").write_text(json.dumps(facts))
    return root


@pytest.mark.parametrize("kind", ["box", "point"])
def test_eval_measures_the_overlap_with_the_objects_that_prompts_are_taken_from(
    copy: Path, model: Path, data: Path, kind: str
) -> None:
    code, output = run("eval", str(copy), "--data", str(data), "--prompt", kind, "--json")
    assert code == 0, output
    evaluation = read(output)
    assert evaluation["task"] == "promptable-masks"
    assert evaluation["n"] == 3  # the image without objects gives no prompt
    metric = evaluation["metrics"]["mask_iou"]
    assert abs(metric["drop"]) < 0.5
    assert evaluation["agreement"] > 0.995
    assert evaluation["metrics"]["oracle_iou"]["reference"] >= metric["reference"]
    assert metric["reference"] == pytest.approx(
        100 * np.mean(list(overlap_in_transformers(model, data, kind))), abs=1.0
    )
    family = load_family(copy)
    assert evaluation["manifest"] == family.digest
    code, output = run("gate", str(copy), "--max-drop", "5", "--json")
    (check,) = [check for check in read(output)["checks"] if check["name"] == "pair: accuracy drop"]
    assert check["status"] == "pass" or "has not learned" in check["why"]
    stored = (copy / "eval.json").read_text()
    edit(copy / "eval.json", json.loads(stored), task="none")
    why = next(check["why"] for check in gate_size(copy) if check["name"] == "pair: eval recomputed")
    assert why.startswith("eval.json: task is none, but its samples give promptable-masks")
    (copy / "eval.json").write_text(stored)
    (copy / "eval.samples.npz").write_bytes(b"other")
    code, output = run("gate", str(copy), "--max-drop", "5", "--json")
    assert code == 3
    assert "is not the one that eval.json names" in output


def overlap_in_transformers(model: Path, data: Path, kind: str) -> Any:
    """Yield the overlap of each object with the mask of transformers, by code of their own."""
    own = transformers.SamModel.from_pretrained(model).eval()
    processor = transformers.SamProcessor(transformers.SamImageProcessor.from_pretrained(model))
    facts = json.loads((data / "annotations.json").read_text())
    for one in facts["annotations"]:
        left, top, width, height = one["bbox"]
        truth = np.zeros((120, 200), dtype=bool)
        truth[top : top + height, left : left + width] = True
        given: dict[str, Any] = {"input_boxes": [[[left, top, left + width - 1, top + height - 1]]]}
        if kind == "point":
            distances = [min(y - top, top + height - 1 - y) for y in range(120)]
            inmost = [min(x - left, left + width - 1 - x) for x in range(200)]
            given = {"input_points": [[[[int(np.argmax(inmost)), int(np.argmax(distances))]]]]}
            depth = min(max(distances), max(inmost))  # the first pixel, row by row, that is as far inside
            row = next(y for y in range(120) if distances[y] >= depth)
            column = next(x for x in range(200) if inmost[x] >= depth)
            given = {"input_points": [[[[column, row]]]], "input_labels": [[[1]]]}
        image = Image.open(data / "images" / f"{one['image_id']}.png")
        inputs = processor(images=image, return_tensors="pt", **given)
        with torch.inference_mode():
            outputs = own(**inputs)
        best = int(outputs.iou_scores.argmax())
        masks = processor.image_processor.post_process_masks(
            outputs.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        yield measure_overlap(masks[0][0, best].numpy(), truth)


def test_eval_of_what_has_no_objects_or_no_prompts_is_one_line(
    result: FamilyResult, data: Path, tmp_path: Path
) -> None:
    family = str(result.family.path)
    code, output = run("eval", family)
    assert (code, "there is no data to evaluate on" in output) == (1, True)
    shutil.copytree(data, tmp_path / "empty")
    facts = json.loads((data / "annotations.json").read_text())
    (tmp_path / "empty" / "annotations.json").write_text(json.dumps({**facts, "annotations": []}))
    code, output = run("eval", family, "--data", str(tmp_path / "empty"))
    assert code == 1
    assert "has no object to take a prompt from" in " ".join(output.split())
    code, output = run("eval", f"{family}/encoder", "--data", str(data), "--prompt", "box")
    assert code == 1
    assert "is no promptable model" in " ".join(output.split())
    code, output = run("eval", f"{family}/decoder", "--data", str(data))
    assert code == 1
    assert "without its encoder it takes no image" in " ".join(output.split())


def test_a_family_is_signed_with_each_part_and_what_is_swapped_is_named(copy: Path, tmp_path: Path) -> None:
    keys = write_pair(tmp_path, "release", generate_private_key(SECP256R1()))
    key = ("--key", str(keys.public))
    assert run("gate", str(copy), "--min-fused", "100")[0] == 0
    code, output = run("sign", str(copy), "--key", str(keys.private), "--json")
    assert code == 0, output
    signed = read(output)
    signatures = ["signature.json", "attestation.json"]
    assert set(signed["written"]) == {f"{place}{name}" for place in ("", "encoder/", "decoder/") for name in signatures}
    assert signed["evidence"] == ["gate.json", "decoder/audit.json", "encoder/audit.json"]
    code, output = run("verify", str(copy), *key, "--json")
    assert code == 0, output
    verified = read(output)
    assert (verified["verdict"], verified["limits"]) == ("pass", {"min_fused_pct": 100})
    assert verified["files"] == sum(len(part.manifest.files) + 1 for part in load_family(copy).parts.values()) + 2
    for part in ("encoder", "decoder"):
        assert run("verify", str(copy / part), *key)[0] == 0, "a part can be verified alone"
    code, output = run("gate", str(copy), "--min-fused", "100", "--require-signed", str(keys.public), "--json")
    assert code == 0, output
    assert run("verify", str(copy), *key)[0] == 0, "the gate changed nothing"

    audit = (copy / "decoder" / "audit.json").read_bytes()
    (copy / "decoder" / "audit.json").write_bytes(audit + b" ")
    code, output = run("verify", str(copy), *key)
    assert code == 1
    assert "decoder: audit.json was changed since it was signed" in " ".join(output.split())
    code, output = run("gate", str(copy), "--min-fused", "100", "--require-signed", str(keys.public), "--json")
    assert code == 1
    assert read(output)["checks"][0]["why"] == "decoder: audit.json was changed since it was signed"
    (copy / "decoder" / "audit.json").write_bytes(audit)
    (copy / "extra.bin").touch()
    code, output = run("verify", str(copy), *key)
    assert (code, "extra.bin" in output) == (1, True)
    (copy / "extra.bin").unlink()
    check_unlisted_files(copy, keys)
    facts = json.loads((copy / "family.json").read_text())
    (copy / "family.json").write_text(json.dumps({**facts, "memory": "all of it"}))
    code, output = run("verify", str(copy), *key)
    assert code == 1
    assert "family.json was changed since it was signed" in " ".join(output.split())


def check_unlisted_files(folder: Path, keys: Pair) -> None:
    """Files that model-signing leaves out, and what it cannot read."""
    names = (
        ".gitignore",
        ".git/config",
        ".github/workflows/run.yml",
        "manifest.json.sig",
        "manifest.json.sigstore.json/a",
    )
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
        code, output = run("verify", str(folder), "--key", str(keys.public))
        assert (code, f"{name} was added and is not signed" in " ".join(output.split())) == (1, True), output
        code, output = run("gate", str(folder), "--min-fused", "100", "--require-signed", str(keys.public), "--json")
        assert (code, read(output)["checks"][0]["why"]) == (1, f"{name} was added and is not signed")
        code, output = run("sign", str(folder), "--key", str(keys.private))
        assert (code, f"{name} is not listed in family.json" in " ".join(output.split())) == (1, True), output
        shutil.rmtree(folder / name.split("/")[0]) if "/" in name else file.unlink()
    (folder / "link").symlink_to("family.json")
    os.mkfifo(folder / "pipe")
    for name in ("link", "pipe"):
        code, output = run("sign", str(folder), "--key", str(keys.private))
        assert (code, f"{name} is not listed in family.json" in " ".join(output.split())) == (1, True), output
        code, output = run("verify", str(folder), "--key", str(keys.public))
        assert (code, f"{name} was added and is not signed" in " ".join(output.split())) == (1, True), output
        (folder / name).unlink()
    assert run("verify", str(folder), "--key", str(keys.public))[0] == 0


def test_a_link_that_comes_while_a_family_is_signed_is_one_line(copy: Path, tmp_path: Path) -> None:
    keys = write_pair(tmp_path, "release", generate_private_key(SECP256R1()))
    subject = of_family(load_family(copy))
    (copy / "link").symlink_to("family.json")
    with pytest.raises(ArtifactError, match=r"model-signing refuses it: .*link"):
        sign_files(subject, read_private(keys.private))


def test_a_verdict_about_a_family_that_its_evidence_does_not_give_is_not_signed(copy: Path, tmp_path: Path) -> None:
    keys = write_pair(tmp_path, "release", generate_private_key(SECP256R1()))

    def edit(**facts: object) -> str:
        verdict = json.loads((copy / "gate.json").read_text())
        (copy / "gate.json").write_text(json.dumps({**verdict, **facts}))
        code, output = run("sign", str(copy), "--key", str(keys.private))
        assert code == 1, output
        assert not (copy / "attestation.json").exists()
        return " ".join(output.split())

    assert run("gate", str(copy), "--max-size", "0.001")[0] == 1
    assert "gate.json says pass, and the evidence gives fail" in edit(verdict="pass")
    assert run("gate", str(copy), "--min-fused", "100")[0] == 0
    checks = json.loads((copy / "gate.json").read_text())["checks"]
    assert "the check 'pair: parity' in gate.json" in edit(checks=[{**checks[0], "observed": 0.5}, *checks[1:]])
    assert "the check 'decoder: attention fused' in gate.json" in edit(checks=checks[:-1])
    assert run("gate", str(copy), "--min-fused", "100", "--before-signing")[0] == 0
    assert run("sign", str(copy), "--key", str(keys.private))[0] == 0
