"""The time that a caller waits: from an encoded image to labels or boxes, by stage."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy import tasks
from vitdeploy.artifact import Artifact
from vitdeploy.data.frames import clip_pixels, find_clip_folders, list_frames
from vitdeploy.data.image_files import find_images
from vitdeploy.data.images import FORMATS, open_image
from vitdeploy.data.preprocess import to_input, upright_size
from vitdeploy.data.synthetic import coloured_noise
from vitdeploy.evidence import EndToEnd, Stage
from vitdeploy.limits import MAX_IMAGE_BYTES
from vitdeploy.measure.latency import MIN_BLOCKS, compute_figures
from vitdeploy.plain_files import read_plain
from vitdeploy.progress import Progress
from vitdeploy.recipe import Preprocess
from vitdeploy.runtime.artifact_session import fill_inputs, open_session
from vitdeploy.runtime.deployed import describe_answer
from vitdeploy.session import Array, Session

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

STAGES = ("decode", "preprocess", "engine", "postprocess")
_FRAME = (720, 1280)  # height and width of a usual camera
_QUALITY = 90
_MOST_IMAGES = 32  # their bytes are in memory, so that the disk is not timed
_WARM_UP = 5
_BLOCKS = 20
_DIGITS = 4


@dataclass(frozen=True)
class Encoded:
    """Encoded images in memory, each as its frames (one, unless the model takes clips); and what they are in words."""

    images: tuple[tuple[bytes, ...], ...]
    words: str


def read_encoded(spec: str | None, preprocess: Preprocess) -> Encoded:
    """Read encoded images from a file or folder; without one, make a photograph-like JPEG of a camera's size.

    Raises:
        DataError: there are no images, or they are damaged.
    """
    if spec is None:
        words = f"a made-up JPEG of {_FRAME[1]}x{_FRAME[0]}"
        words = f"{preprocess.frames} times {words}" if preprocess.frames else words
        return Encoded(((_make_frame(preprocess),) * (preprocess.frames or 1),), words)
    if preprocess.frames is None:
        paths = [[path] for path in find_images(spec)[:_MOST_IMAGES]]
    else:
        most = -(-_MOST_IMAGES // preprocess.frames)
        clips = find_clip_folders(spec, preprocess.frames)[:most]
        paths = [list_frames(clip, preprocess.frames) for clip in clips]
    for each in (path for frames_of_one in paths for path in frames_of_one):
        open_image(each)  # refuses what is no image, with its name
    images = tuple(tuple(read_plain(path, MAX_IMAGE_BYTES.value) for path in each) for each in paths)
    return Encoded(images, f"{len(images)} {preprocess.sample_word}s of {spec}")


def measure_end_to_end(
    artifact: Artifact, encoded: Encoded, threads: int, seconds: float, progress: Progress
) -> EndToEnd:
    """Time an artifact on one image after the other, as `predict` runs it.

    Args:
        artifact: the artifact.
        encoded: the images.
        threads: the number of threads of the engine.
        seconds: the time to measure.
        progress: gets the step.
    """
    blocks: list[tuple[float, ...]] = []
    stages: list[list[float]] = []
    further = fill_inputs(artifact, {}, artifact.manifest.recipe.target.batch.min)
    with open_session(artifact, threads, progress) as session, progress.step("Time from encoded images to answers"):
        for number in range(_WARM_UP):
            _time_once(artifact, session, encoded.images[number % len(encoded.images)], further)
        started, count = time.perf_counter(), 0
        while len(blocks) < MIN_BLOCKS or time.perf_counter() - started < seconds:
            until = time.perf_counter() + seconds / _BLOCKS
            block: list[float] = []
            while len(block) < len(encoded.images) or time.perf_counter() < until:
                times = _time_once(artifact, session, encoded.images[count % len(encoded.images)], further)
                stages.append(times)
                block.append(round(sum(times), _DIGITS))
                count += 1
            blocks.append(tuple(block))
    return summarize(encoded.words, blocks, stages)


def summarize(words: str, blocks: Sequence[tuple[float, ...]], stages: Sequence[Sequence[float]]) -> EndToEnd:
    """Return the evidence of samples.

    Args:
        words: the images in words.
        blocks: the time of each sample in ms, block by block.
        stages: the time of each stage of each sample in ms.
    """
    figures, times = compute_figures(blocks, (), 1, None), np.array(stages)
    shares = 100 * times.mean(axis=0) / times.mean(axis=0).sum()
    return EndToEnd(
        images=words,
        samples=figures.samples,
        p50_ms=figures.p50_ms,
        p90_ms=figures.p90_ms,
        p99_ms=figures.p99_ms,
        p50_ci95=figures.p50_ci95,
        p90_ci95=figures.p90_ci95,
        p99_ci95=figures.p99_ci95,
        stages=tuple(
            Stage(name=name, median_ms=round(float(np.median(column)), _DIGITS), share_pct=float(share))
            for name, column, share in zip(STAGES, times.T, shares, strict=True)
        ),
        blocks=tuple(blocks),
    )


def _time_once(artifact: Artifact, session: Session, raw: Sequence[bytes], further: Mapping[str, Array]) -> list[float]:
    """Answer one image or clip, given as its frames; return the milliseconds of each stage."""
    manifest = artifact.manifest
    task, batch = tasks.find(manifest.recipe.task), manifest.recipe.target.batch.min
    marks = [time.perf_counter_ns()]
    pictures = [_decode(each) for each in raw]
    marks.append(time.perf_counter_ns())
    frames = clip_pixels(pictures, manifest.preprocess)
    pixels = np.repeat((frames if manifest.preprocess.frames else frames[0])[None], batch, axis=0)
    size = upright_size(pictures[0])
    images = to_input(pixels, manifest.preprocess, manifest.recipe.target.input)
    inputs = {manifest.inputs[0].name: images, **further}
    marks.append(time.perf_counter_ns())
    results = session.run(inputs)
    marks.append(time.perf_counter_ns())
    outputs = task.select_outputs(tasks.find_batched(results, batch))
    describe_answer(manifest, outputs, size)
    marks.append(time.perf_counter_ns())
    return [(after - before) / 1e6 for before, after in pairwise(marks)]


def _decode(raw: bytes) -> PILImage:
    from PIL import Image

    with Image.open(io.BytesIO(raw), formats=FORMATS) as picture:
        picture.load()
        decoded: PILImage = picture
        return decoded


def _make_frame(preprocess: Preprocess) -> bytes:
    from PIL import Image

    image = Image.fromarray(coloured_noise(0, 0, _FRAME))
    buffer = io.BytesIO()
    (image.convert("L") if preprocess.channels == 1 else image).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
