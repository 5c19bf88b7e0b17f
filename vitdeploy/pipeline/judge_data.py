"""Judge data: images with the answers of FP32, so that a device can judge the accuracy of variants without PyTorch.

task       the kind of the task that reads the outputs
pixels     uint8 (n, channels, height, width), or (n, frames, channels, height, width), at the size of the model
labels     int64 (n,); only if they are classes of the model
output.X   (n, …): the output X of FP32, in float16 if that changes no answer
input.X    (n, …): the input X beside the image, where there are any
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.data.array_files import read_npz
from vitdeploy.errors import DataError
from vitdeploy.pipeline.calibration import JUDGING_IMAGES, JudgingBatches
from vitdeploy.pipeline.judging import Answers, AnswersInProgress, Loss, drop_foreign_labels, measure_loss
from vitdeploy.progress import Progress
from vitdeploy.session import Array, Session, as_feeds
from vitdeploy.tasks import Task, find_batched

MOST_BYTES = 64 << 20
"""The size of the file: 256 images of 224 x 224 take 37 MiB. Larger images, or large outputs, leave room for fewer."""
_MOST_READ_BYTES = 256 << 20
"""The size of a file that is read, which may come from anyone."""
_AGREED = 0.999
"""Outputs are stored in float16 if no answer agrees less than this with that of float32."""
_FIX = "Export it again, or name the variant to compile: --variant NAME."


@dataclass(frozen=True)
class JudgeData:
    """Images with the outputs of FP32.

    Attributes:
        pixels: uint8, NCHW.
        outputs: by name, a row for each image.
        labels: (n,), or None.
        further: the inputs beside the image, by name.
    """

    pixels: Array
    outputs: Mapping[str, Array]
    labels: Array | None
    further: Mapping[str, Array]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    def batches(self, size: int) -> Iterator[slice]:
        """Yield the rows of each full batch."""
        return (slice(start, start + size) for start in range(0, len(self) - size + 1, size))

    def read_answers(self, task: Task, size: int) -> Answers:
        """Return FP32's answers to the images in full batches.

        Raises:
            DataError: the outputs are not of this task.
        """
        answers = AnswersInProgress(task)
        for rows in self.batches(size):
            outputs = {
                name: value[rows].astype(np.float32) if value.dtype == np.float16 else value[rows]
                for name, value in self.outputs.items()
            }
            answers.add(outputs, size, self._labels(rows))
        return drop_foreign_labels(task, answers.finish())

    def judge(self, task: Task, session: Session, make_inputs: Any, size: int, advance: Any) -> Loss:
        """Run a model on the images, and return what it loses against FP32.

        Args:
            task: reads the answers.
            session: the model.
            make_inputs: returns the inputs by name for pixels and the inputs beside them.
            size: the batch size.
            advance: called with the number of images that are done.
        """
        actual = AnswersInProgress(task)
        for rows in self.batches(size):
            further = {name: value[rows] for name, value in self.further.items()}
            actual.add(session.run(make_inputs(self.pixels[rows], further)), size, self._labels(rows))
            advance(size)
        return measure_loss(task, self.read_answers(task, size), actual.finish())

    def _labels(self, rows: slice) -> list[int] | None:
        return None if self.labels is None else [int(label) for label in self.labels[rows]]


def save_judge_data(
    path: Path, batches: JudgingBatches, reference: Session, input_name: str, task: Task, progress: Progress
) -> JudgeData | None:
    """Run FP32 on the judging images, and store both, up to `MOST_BYTES`. Return what was stored; None: nothing fits.

    Args:
        path: the file to write.
        batches: the images.
        reference: FP32.
        input_name: the name of the image input.
        task: reads the answers; it is recorded, because other tasks cannot read the outputs.
        progress: gets the step.
    """
    parts: list[JudgeData] = []
    size = images = 0
    with progress.step("Store images for the device to judge variants on", JUDGING_IMAGES) as advance:
        for batch in batches():
            count = len(batch.pixels)
            outputs = task.select_outputs(find_batched(reference.run(as_feeds(batch.inputs, input_name)), count))
            labels = (
                None if batch.labels is None or not _are_classes(batch.labels) else np.array(batch.labels, np.int64)
            )
            part = JudgeData(batch.pixels, _shrink(task, outputs), labels, batch.further)
            size += _count_bytes(part)
            images += count
            if size > MOST_BYTES or images > JUDGING_IMAGES:
                break
            parts.append(part)
            advance(count)
    if not parts:
        return None
    data = _join(parts)
    arrays: dict[str, Any] = {"task": np.array(task.name), "pixels": data.pixels}
    arrays |= {f"output.{name}": value for name, value in data.outputs.items()}
    arrays |= {f"input.{name}": value for name, value in data.further.items()}
    if data.labels is not None:
        arrays["labels"] = data.labels
    np.savez(path, **arrays)
    return data


def load_judge_data(path: Path, task: Task, sample_shape: tuple[int, ...]) -> JudgeData:
    """Read a file of `save_judge_data`.

    Args:
        path: the file.
        task: of the model.
        sample_shape: the shape of one image of the model.

    Raises:
        DataError: it is damaged, too large, or of another task or image size.
    """
    size = path.stat().st_size
    if size > _MOST_READ_BYTES:
        raise DataError(f"{path} has {size >> 20} MiB: judge data has at most {_MOST_READ_BYTES >> 20} MiB", fix=_FIX)
    arrays = read_npz(path, _FIX)
    kind = str(arrays.get("task", ""))
    if kind != task.name:
        raise DataError(
            f"{path} is judge data of the task {kind or 'unknown'}, and the model's is {task.name}", fix=_FIX
        )
    pixels = arrays.get("pixels")
    outputs = {name.removeprefix("output."): value for name, value in arrays.items() if name.startswith("output.")}
    further = {name.removeprefix("input."): value for name, value in arrays.items() if name.startswith("input.")}
    labels = arrays.get("labels")
    if pixels is None or not outputs or pixels.dtype != np.uint8 or not len(pixels):
        raise DataError(f"{path} is damaged: it has no images, or no outputs", fix=_FIX)
    if pixels.shape[1:] != sample_shape:
        shapes = ("x".join(map(str, shape)) for shape in (pixels.shape[1:], sample_shape))
        raise DataError(f"{path} has images of {' and the model takes '.join(shapes)}", fix=_FIX)
    rows = {
        len(value) if value.ndim else -1
        for value in (*outputs.values(), *further.values(), *([] if labels is None else [labels]))
    }
    if rows != {len(pixels)} or (labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu")):
        raise DataError(f"{path} is damaged: it does not have one output and one label for each image", fix=_FIX)
    if any(value.dtype.kind not in "fiub" for value in (*outputs.values(), *further.values())):
        raise DataError(f"{path} is damaged: its outputs and inputs are not numbers", fix=_FIX)
    data = JudgeData(pixels, outputs, labels, further)
    try:
        data.read_answers(task, 1)
    except (DataError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is damaged: its outputs are not those of a model for {task.name} ({error})", fix=_FIX
        ) from None
    return data


def _shrink(task: Task, outputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the outputs in float16, unless that changes an answer."""
    with np.errstate(over="ignore"):
        halves = {
            name: value.astype(np.float16) if value.dtype == np.float32 else value for name, value in outputs.items()
        }
    rounded = {name: value.astype(outputs[name].dtype) for name, value in halves.items()}
    agreed = task.compare_outputs(outputs, rounded)
    return halves if bool((agreed >= _AGREED).all()) else dict(outputs)


def _join(parts: list[JudgeData]) -> JudgeData:
    first = parts[0]
    outputs = {
        name: np.concatenate([_widen(part.outputs[name], parts, name) for part in parts]) for name in first.outputs
    }
    labels = (
        None
        if any(part.labels is None for part in parts)
        else np.concatenate([part.labels for part in parts if part.labels is not None])
    )
    further = {name: np.concatenate([part.further[name] for part in parts]) for name in first.further}
    return JudgeData(np.concatenate([part.pixels for part in parts]), outputs, labels, further)


def _widen(value: Array, parts: list[JudgeData], name: str) -> Array:
    """Return an output in the widest type that it has in any batch."""
    return value.astype(np.result_type(*(part.outputs[name].dtype for part in parts)))


def _count_bytes(part: JudgeData) -> int:
    arrays = (part.pixels, *part.outputs.values(), *part.further.values())
    return sum(array.nbytes for array in arrays)


def _are_classes(labels: list[Any]) -> bool:
    return all(isinstance(label, (int, np.integer)) for label in labels)
