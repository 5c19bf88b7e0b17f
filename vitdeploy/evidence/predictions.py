"""A model's answer about one image, for scripts and for people."""

from __future__ import annotations

from vitdeploy.evidence.fact import Fact


class Guess(Fact):
    """A class with its probability (softmax of the logits)."""

    index: int
    label: str
    probability: float


class Region(Fact):
    """A class with its share of the pixels, from 0 to 1."""

    index: int
    label: str
    share: float


class Box(Fact):
    """An object: left, top, right and bottom in pixels of the image, and the score from 0 to 1."""

    index: int
    label: str
    score: float
    box: tuple[float, float, float, float]


class Instance(Fact):
    """An object with a mask: its score from 0 to 1, the box around the mask, and the area of the mask.

    Attributes:
        box: left, top, right and bottom in pixels of the image.
        area: in pixels of the image.
    """

    index: int
    label: str
    score: float
    box: tuple[float, float, float, float]
    area: int


class MaskRuns(Fact):
    """A mask as COCO's run lengths: pixels outside, inside, outside, …, column by column from the top left.

    Attributes:
        size: height and width of the image.
        counts: the lengths.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]


class Keypoint(Fact):
    """A keypoint: x and y in pixels of the image, from the middle of the first one, and its score.

    Attributes:
        score: the highest value of the heatmap, about 1 for a sure one.
        confident: True if the score reaches the task's threshold.
    """

    index: int
    label: str
    score: float
    x: float
    y: float
    confident: bool


class Depths(Fact):
    """The range of a depth map, in the unit that the model was trained on: metres, or another one."""

    nearest: float
    median: float
    farthest: float


class OutputNumbers(Fact):
    """An output of a model, for one image: its shape and the range of its numbers."""

    name: str
    shape: tuple[int, ...]
    smallest: float
    largest: float
    mean: float


class Answer(Fact):
    """One answer. The fields of other tasks are empty.

    Attributes:
        top: the best classes of a classifier, best first.
        regions: the classes of a segmentation, largest first.
        boxes: the objects of a detector that pass its threshold, highest score first.
        instances: the objects with masks that pass the threshold, highest score first.
        masks: the masks of `instances`, in their order, of a promptable model.
        keypoints: of a pose, all of them and in the model's order.
        depth: the range of a depth map.
        embedding: the vector, scaled to length 1.
        outputs: the outputs of a model whose task is `raw`.
    """

    top: tuple[Guess, ...] = ()
    regions: tuple[Region, ...] = ()
    boxes: tuple[Box, ...] = ()
    instances: tuple[Instance, ...] = ()
    masks: tuple[MaskRuns, ...] = ()
    keypoints: tuple[Keypoint, ...] = ()
    depth: Depths | None = None
    embedding: tuple[float, ...] = ()
    outputs: tuple[OutputNumbers, ...] = ()
