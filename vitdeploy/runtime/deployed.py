"""An open artifact that answers images, with the model's own preprocessing and labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ConfigDict

from vitdeploy import artifact as artifacts
from vitdeploy import precision, tasks
from vitdeploy.artifact.manifest import Manifest
from vitdeploy.data.frames import clip_pixels
from vitdeploy.data.geometry import is_padded, visible_area
from vitdeploy.data.preprocess import to_input, to_pixels, to_rgb, upright_size
from vitdeploy.errors import DataError
from vitdeploy.escaping import replace_undecodable
from vitdeploy.evidence import Scenario
from vitdeploy.evidence.predictions import Answer
from vitdeploy.frozen import replace
from vitdeploy.progress import Progress
from vitdeploy.render.picture_folder import PictureFolder
from vitdeploy.runtime.artifact_session import check_image_size, open_session, refuse_decoder
from vitdeploy.runtime.given_images import Image, list_sources, name_source, open_sample
from vitdeploy.runtime.given_inputs import read_given
from vitdeploy.runtime.run_ahead import run_ahead
from vitdeploy.runtime.stored_streams import read_setting
from vitdeploy.session import Array, Closing, is_finite

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage


class Prediction(Answer):
    """The model's answer to one image. `task` decides which fields are filled.

    Attributes:
        image: the path, or "array" or "image" without one.
        task: the name of the task.
        saved: the picture or vector that was written; None if none was.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    image: str
    task: str
    saved: str | None = None


@dataclass(frozen=True)
class Answered:
    """The answer to one image, and the outputs for it: what a picture is drawn from.

    Attributes:
        source: the image: a file, an array or a Pillow image.
        prediction: the answer.
        outputs: the outputs that the task reads, for a batch of this image alone.
        size: height and width of the upright image.
    """

    source: Image
    prediction: Prediction
    outputs: Mapping[str, Array]
    size: tuple[int, int]

    @property
    def name(self) -> str:
        """The image as it is called in answers and messages."""
        return self.prediction.image


@dataclass(frozen=True)
class Unanswered:
    """An image that has no answer, with the reason: it is damaged, or the model gives NaN or infinity for it."""

    name: str
    error: DataError


@dataclass(frozen=True)
class _Waiting:
    """A preprocessed image that waits for its batch to be full."""

    source: Image
    name: str
    size: tuple[int, int]
    pixels: Array
    further: Mapping[str, Array]


class Deployed(Closing):
    """An open artifact. Close it, or use it in a `with` block.

    Many threads may use it at the same time, and each gets the answers to its own images. On OpenVINO and ONNX Runtime
    their runs overlap. On TensorRT they take turns. After `close()` a call raises UsageError; runs that are under way
    still return their answers.

    Raises:
        ArtifactError: the folder is damaged.
        TargetUnavailable: it cannot run on this machine.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        threads: int | None = None,
        scenario: Scenario = "single-stream",
        progress: Progress | None = None,
    ) -> None:
        self.artifact = artifacts.load(Path(path))
        refuse_decoder(self.artifact, "predict")
        stored = read_setting(self.artifact, scenario, threads)
        if stored.note and progress:
            progress.warn(stored.note)
        self.setting = stored.setting
        """The stored streams and batch that it runs with; None: the artifact's own."""
        self._session = open_session(self.artifact, threads, progress, stored.setting)

    def run(self, images: Array, inputs: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run images in the form that the artifact takes (`target.input` of its recipe), and return the outputs.

        The artifact must accept the batch size. `inputs` has the values of its other inputs, (batch, …) by name.

        Raises:
            UsageError: the artifact is for a range of image sizes, and these images are not in it.
        """
        check_image_size(self.artifact, (images.shape[-2], images.shape[-1]))
        return self._session.run({self.artifact.manifest.inputs[0].name: images, **(inputs or {})})

    def predict(
        self,
        images: Image | Sequence[Image],
        *,
        save: str | Path | None = None,
        inputs: Mapping[str, object] | None = None,
    ) -> list[Prediction]:
        """Return the model's answers to images, one for each, in order.

        Images run in batches of the size that the artifact was optimised for. Only one batch is in memory at a time.

        Args:
            images: one or several of: image files, folders (all images below, in the order of the numbers in their
                names), globs, uint8 arrays (H, W) or (H, W, 3), Pillow images. For a model of clips: folders of frames,
                globs of these, uint8 arrays (frames, H, W) or (frames, H, W, 3), lists of frames.
            save: a folder for a picture of each answer, or for its vector; None writes nothing.
            inputs: the values of the inputs beside the image, by name: see `given_inputs.read_given`.

        Raises:
            DataError: an image or an input is missing, damaged or a video, or the outputs are not those of the task.
            UsageError: `save` cannot be written, or is in the artifact, or a picture would replace an image.
        """
        sources = self.list_sources(images)
        folder = None if save is None else self.open_folder(Path(save), sources)
        predictions = []
        for number, answer in enumerate(self.answer(sources, self.read_inputs(inputs or {}, len(sources)))):
            if isinstance(answer, Unanswered):
                raise answer.error
            predictions.append(answer.prediction if folder is None else self.save(answer, folder, number))
        return predictions

    def list_sources(self, images: Image | Sequence[Image]) -> list[Image]:
        """Return one or several images, or clips, as a list: see `given_images.list_sources`."""
        return list_sources(images, self.artifact.manifest.preprocess.frames)

    def read_inputs(self, given: Mapping[str, object], count: int) -> dict[str, Array]:
        """Return the values of the inputs beside the image for `count` images: see `given_inputs.read_given`."""
        return read_given(self.artifact, given, count)

    def answer(
        self, sources: Iterable[Image], inputs: Mapping[str, Array] | None = None
    ) -> Iterator[Answered | Unanswered]:
        """Yield the answers to images, in order, as their batches are done. A damaged image does not stop the others.

        Args:
            sources: image files, arrays and Pillow images.
            inputs: the values of the inputs beside the image, (images, …) by name.

        Raises:
            DataError: the model's outputs are not those of its task.
        """
        streams = 1 if self.setting is None else self.setting.streams
        for group, results in run_ahead(self._run_group, self._group(sources, inputs or {}), streams):
            yield from self._answer_group(group, results)

    def open_folder(self, folder: Path, sources: Sequence[Image]) -> PictureFolder:
        """Return the folder for the pictures of these images, or for their vectors.

        Raises:
            UsageError: see `PictureFolder`.
        """
        names = [str(source) if isinstance(source, (str, Path)) else name_source(source) for source in sources]
        return PictureFolder(folder, names, self.artifact.path)

    def save(self, answer: Answered, folder: PictureFolder, number: int) -> Prediction:
        """Write the picture or the vector of answer `number`, and return the prediction with its path.

        Raises:
            DataError: the image has gone, or was changed.
            UsageError: the file cannot be written.
        """
        if answer.prediction.embedding:
            path = folder.write_vector(number, np.asarray(answer.prediction.embedding, dtype=np.float32))
        else:
            path = folder.write_picture(number, self._draw(answer))
        return replace(answer.prediction, saved=replace_undecodable(str(path)))

    def close(self) -> None:
        """Free the engine."""
        self._session.close()

    def _group_size(self) -> int:
        """Return how many different images run together.

        It is one where the engine takes one range of activations for the whole batch: the images would change each
        other's answers.
        """
        if self.setting is not None:
            return self.setting.batch
        manifest = self.artifact.manifest
        together = not precision.kind_of(manifest.target.precision).numbers.dynamic
        return manifest.recipe.target.batch.opt if together else 1

    def _read(self, source: Image, further: Mapping[str, Array]) -> _Waiting | Unanswered:
        preprocess = self.artifact.manifest.preprocess
        try:
            pictures = open_sample(source, preprocess.frames)
            pixels = clip_pixels(pictures, preprocess) if preprocess.frames else to_pixels(pictures[0], preprocess)
            return _Waiting(source, name_source(source), upright_size(pictures[0]), pixels, further)
        except DataError as error:
            return Unanswered(name_source(source), error)

    def _group(
        self, sources: Iterable[Image], inputs: Mapping[str, Array]
    ) -> Iterator[Sequence[_Waiting | Unanswered]]:
        """Preprocess images, and yield them in batches. Damaged ones keep their place and take none of a batch."""
        size, waiting, full = self._group_size(), list[_Waiting | Unanswered](), 0
        for number, source in enumerate(sources):
            further = {name: value[number] for name, value in inputs.items()}
            waiting.append(self._read(source, further))
            full += isinstance(waiting[-1], _Waiting)
            if full == size:
                yield waiting
                waiting, full = [], 0
        yield waiting

    def _run_group(self, group: Sequence[_Waiting | Unanswered]) -> dict[str, Array]:
        """Run a batch. The last image fills it up if the artifact takes no smaller one. No image, no outputs."""
        manifest = self.artifact.manifest
        ready = [item for item in group if isinstance(item, _Waiting)]
        if not ready:
            return {}
        batch = max(len(ready), manifest.recipe.target.batch.min)
        ready += ready[-1:] * (batch - len(ready))
        pixels = np.stack([item.pixels for item in ready])
        further = {name: np.stack([item.further[name] for item in ready]) for name in ready[0].further}
        results = self.run(to_input(pixels, manifest.preprocess, manifest.recipe.target.input), further)
        return dict(tasks.find_batched(results, batch))

    def _answer_group(
        self, group: Sequence[_Waiting | Unanswered], results: Mapping[str, Array]
    ) -> Iterator[Answered | Unanswered]:
        has_images = any(isinstance(item, _Waiting) for item in group)
        task = tasks.find(self.artifact.manifest.recipe.task)
        outputs, row = task.select_outputs(results) if has_images else {}, 0
        for item in group:
            if isinstance(item, Unanswered):
                yield item
                continue
            yield self._describe(item, {name: value[row : row + 1] for name, value in outputs.items()})
            row += 1

    def _describe(self, item: _Waiting, outputs: Mapping[str, Array]) -> Answered | Unanswered:
        manifest = self.artifact.manifest
        if not is_finite(outputs):
            message = f"{item.name}: the model gives NaN or infinity"
            fix = "Export it in a precision with a larger range, such as fp32."
            return Unanswered(item.name, DataError(message, fix=fix))
        answer = describe_answer(manifest, outputs, item.size)
        prediction = Prediction(image=item.name, task=tasks.find(manifest.recipe.task).name, **dict(answer))
        return Answered(item.source, prediction, outputs, item.size)

    def _draw(self, answer: Answered) -> PILImage:
        from vitdeploy.render.pictures import draw_answer

        task = tasks.find(self.artifact.manifest.recipe.task)
        view = visible_area(*answer.size, self.artifact.manifest.preprocess)
        pixels = task.map_pixels(answer.outputs, view, answer.size)
        corner = max(0, round(view[0])), max(0, round(view[1]))
        lines = task.format_answer(answer.prediction)
        pictures = open_sample(answer.source, self.artifact.manifest.preprocess.frames)
        return draw_answer(to_rgb(pictures[len(pictures) // 2]), answer.prediction, lines, pixels, corner)


def describe_answer(manifest: Manifest, outputs: Mapping[str, Array], size: tuple[int, int]) -> Answer:
    """Return the answer that a task reads in the outputs for one image of `size`, (height, width)."""
    task, preprocess = tasks.find(manifest.recipe.task), manifest.preprocess
    padded = {"picture": size} if is_padded(*size, preprocess) else {}
    return task.describe(outputs, manifest.labels, visible_area(*size, preprocess), **padded)
