"""Export one fine-tuned model from every form of checkpoint that training scripts leave, and score each artifact.

    python -m benchmarks.checkpoint_forms [--work DIR] [--images N]

A small ViT of timm (`test_vit`) is fine-tuned on Fashion-MNIST, in colour and at 64x64, and saved in 24 forms. Each is
exported with one command and evaluated on the test images. Four checkpoints must be refused in one line. The table goes
to `benchmarks/checkpoint_forms.md`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from benchmarks.fashion_mnist.data import read_split
from benchmarks.fashion_mnist.model import LABELS
from benchmarks.tables import describe_machine, read_rows, write_page
from benchmarks.training import Plan, train
from vitdeploy.cli import app

NAME = "test_vit"
SIZE = 64
MEAN, STD = (0.5,) * 3, (0.5,) * 3
PLAN = Plan(seed=0, epochs=2, batch=128, peak_learning_rate=2e-3, label_smoothing=0.05)
DEFAULT_WORK = Path("build/checkpoint_forms")
TABLE = Path(__file__).with_suffix(".md")
COLUMNS = ("checkpoint", "options", "what export says about it", "top-1")
REFUSED_COLUMNS = ("checkpoint", "the one line")

State = dict[str, Tensor]


@dataclass(frozen=True)
class Form:
    """A form of checkpoint: its name, how to save it in a folder, and the options that it needs."""

    name: str
    save: Callable[[Path, State], Path]
    options: tuple[str, ...] = ()


def build() -> nn.Module:
    """Build the model with fresh weights: float32 (N, 3, 64, 64) in, logits (N, 10) out."""
    return timm.create_model(NAME, num_classes=len(LABELS), img_size=SIZE)


def enlarge(batch: Tensor) -> Tensor:
    """Turn grey bytes (N, 1, 28, 28) into what the model takes: float32 (N, 3, 64, 64), normalized."""
    large = functional.interpolate(batch.float() / 255, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    return ((large - MEAN[0]) / STD[0]).expand(-1, 3, -1, -1)


def fine_tune(threads: int) -> State:
    """Train the model on the 60,000 training images."""
    torch.set_num_threads(threads)
    split = read_split("train")
    images, labels = torch.from_numpy(split.images.copy()).unsqueeze(1), torch.from_numpy(split.labels.astype(np.int64))
    return dict(train(build, images, labels, PLAN, lambda batch, _: enlarge(batch)).state_dict())


def _other(state: State) -> State:
    """Other weights with the same keys, as of a student beside a teacher."""
    return {key: value + 1 for key, value in state.items()}


def _under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def _torch(name: str, wrap: Callable[[State], Any] = lambda state: state) -> Callable[[Path, State], Path]:
    def save(folder: Path, state: State) -> Path:
        torch.save(wrap(state), folder / name)
        return folder / name

    return save


def _plain_safetensors(folder: Path, state: State) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder / "model.safetensors"


def _shards(suffix: str, write: Callable[[State, Path], None]) -> Callable[[Path, State], Path]:
    def save(folder: Path, state: State) -> Path:
        keys = list(state)
        places: dict[str, str] = {}
        for number, part in enumerate((keys[::2], keys[1::2]), start=1):
            name = f"model-0000{number}-of-00002{suffix}"
            write({key: state[key] for key in part}, folder / name)
            places |= dict.fromkeys(part, name)
        index = folder / f"model{suffix}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
        return index

    return save


def _saved_by_timm(folder: Path, state: State) -> Path:
    module = build()
    module.load_state_dict(state)
    config = {"input_size": (3, SIZE, SIZE), "mean": MEAN, "std": STD, "crop_pct": 1.0, "label_names": list(LABELS)}
    timm.models.save_for_hf(module, str(folder / "saved"), model_config=config, model_args={"img_size": SIZE})
    return folder / "saved"


FORMS = (
    Form(".safetensors", _plain_safetensors),
    Form(".pt", _torch("model.pt")),
    Form(".pth", _torch("model.pth")),
    Form(".bin", _torch("pytorch_model.bin")),
    Form(".safetensors in two files", _shards(".safetensors", save_file)),
    Form(".bin in two files", _shards(".bin", torch.save)),
    Form("a folder that timm saved", _saved_by_timm),
    Form(".pth.tar under state_dict", _torch("model_best.pth.tar", lambda s: {"epoch": 2, "state_dict": s})),
    Form(".pth under model", _torch("m.pth", lambda s: {"model": s, "optimizer": {"lr": 0.1}})),
    Form(".pth under model_state_dict", _torch("m.pth", lambda s: {"model_state_dict": s, "loss": 0.3})),
    Form(".pt under module", _torch("mp_rank_00.pt", lambda s: {"module": s, "dp_world_size": 1})),
    Form(".pth under model_ema", _torch("m.pth", lambda s: {"model_ema": s})),
    Form(".pt under ema", _torch("m.pt", lambda s: {"ema": s, "steps": 5})),
    Form(
        ".pth under state_dict_ema, --ema",
        _torch("m.pth", lambda s: {"state_dict": _other(s), "state_dict_ema": s}),
        ("--ema",),
    ),
    Form(".pth under teacher", _torch("m.pth", lambda s: {"teacher": s, "student": _other(s)})),
    Form(
        ".pth under student, chosen",
        _torch("m.pth", lambda s: {"teacher": _other(s), "student": s}),
        ("--weights-key", "student"),
    ),
    Form(".pth, keys with module.", _torch("m.pth", lambda s: _under("module.", s))),
    Form(".pt, keys with _orig_mod.", _torch("m.pt", lambda s: _under("_orig_mod.", s))),
    Form(".pth, keys with module._orig_mod.", _torch("m.pth", lambda s: {"model": _under("module._orig_mod.", s)})),
    Form(
        ".ckpt of Lightning, keys with model.",
        _torch("last.ckpt", lambda s: {"epoch": 2, "state_dict": _under("model.", s), "callbacks": {}}),
    ),
    Form(
        ".ckpt, keys with net. beside a loss",
        _torch("last.ckpt", lambda s: {"state_dict": {**_under("net.", s), "loss.weight": torch.ones(10)}}),
    ),
    Form(".bin, keys with backbone.", _torch("pytorch_model.bin", lambda s: _under("backbone.", s))),
    Form(".pth, keys with encoder.", _torch("m.pth", lambda s: _under("encoder.", s))),
    Form(
        ".pth with class_to_idx",
        _torch("m.pth", lambda s: {"state_dict": s, "class_to_idx": {n: i for i, n in enumerate(LABELS)}}),
    ),
)

REFUSED = (
    Form("a module that was pickled whole", lambda folder, _: _torch("whole.pth", lambda _s: build())(folder, {})),
    Form(
        "a checkpoint with objects among its hyper-parameters",
        _torch("last.ckpt", lambda s: {"state_dict": s, "hyper_parameters": argparse.Namespace(lr=2e-3)}),
    ),
    Form(
        "a model without its head", _torch("m.pth", lambda s: {k: v for k, v in s.items() if not k.startswith("head.")})
    ),
    Form(
        "another architecture", _torch("m.pth", lambda _: dict(timm.create_model("vit_tiny_patch16_224").state_dict()))
    ),
)


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def call(*words: object) -> Ended:
    """Run the command line, in this process: importing PyTorch anew for each command would take most of the time."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    return Ended(found.exit_code, found.stdout, found.stderr)


def export(form: Form, state: State, folder: Path) -> tuple[Ended, Path]:
    """Save a form and export it; return how the command ended, and the artifact."""
    folder.mkdir(parents=True)
    path, out = form.save(folder, state), folder / "artifact"
    model = [f"timm:{path}"] if path.is_dir() else [f"timm:{NAME}", "--weights", path]
    steps = ("--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD)), "--crop-pct", "1.0")
    return call("export", *model, *form.options, *steps, "--target", "onnxruntime", "-o", out, "--json"), out


def score(artifact: Path, data: Path) -> float:
    """Return the top-1 of an artifact in percent.

    Raises:
        RuntimeError: it cannot be evaluated.
    """
    ended = call("eval", artifact, "--data", data, "--json")
    if ended.code:
        raise RuntimeError(ended.err)
    return float(json.loads(ended.out)["metrics"]["top1"]["deployed"])


def main() -> None:
    """Train, or take the weights of an earlier run; export and score every form; write the page."""
    parser = argparse.ArgumentParser(description="Export a fine-tuned model from 24 forms of checkpoint.")
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK, help=f"default: {DEFAULT_WORK}")
    parser.add_argument("--images", type=int, default=2000, help="test images (default: 2000)")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    weights = work / "tuned.pt"
    if not weights.exists():
        torch.save(fine_tune(2), weights)
    state: State = torch.load(weights, weights_only=True)
    test = read_split("test")
    np.savez_compressed(
        work / "test.npz", images=test.images[: arguments.images], labels=test.labels[: arguments.images]
    )
    heading = [
        "# Forms of checkpoints",
        "",
        f"`{NAME}` of timm, fine-tuned on Fashion-MNIST (10 classes, {SIZE}x{SIZE}), saved in {len(FORMS)} forms. Each",
        "was exported with one command for ONNX Runtime, with these options only, and evaluated on the first",
        f"{arguments.images:,} test images. Made by `python -m benchmarks.checkpoint_forms`.",
        "",
        describe_machine("torch", "timm", "onnxruntime"),
    ]
    rows = {row[0]: row for row in read_rows(TABLE, COLUMNS)}
    refused = []
    for number, form in enumerate((*FORMS, *REFUSED)):
        folder = work / f"run-{number:02}"
        shutil.rmtree(folder, ignore_errors=True)
        if form.name in rows:
            continue
        ended, out = export(form, state, folder)
        if form in REFUSED:
            assert ended.code == 1, ended.out
            refused.append((form.name, f"`{ended.err.strip().splitlines()[-1].replace(str(folder), 'DIR')}`"))
            continue
        if ended.code:
            raise SystemExit(f"{form.name}: {ended.err}")
        note, score_pct = json.loads(ended.out)["notes"][0], score(out, work / "test.npz")
        rows[form.name] = (form.name, " ".join(form.options), note, f"{score_pct:.2f} %")
        print(*rows[form.name], sep=" | ", flush=True)
        write_page(TABLE, heading, COLUMNS, [rows[f.name] for f in FORMS if f.name in rows])
    write_page(TABLE, heading, COLUMNS, [rows[form.name] for form in FORMS])
    with TABLE.open("a") as page:
        page.write("\n## Refused\n\n")
        page.writelines(f"- {name}: {line}\n" for name, line in refused)


if __name__ == "__main__":
    main()
