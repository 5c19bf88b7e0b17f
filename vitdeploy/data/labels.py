"""Labels of an image: a class, a map of classes, a map of depths, boxes, masks of objects, or keypoints."""

from __future__ import annotations

from dataclasses import dataclass

from vitdeploy.session import Array

View = tuple[int, int, int, int]
"""Top, left, bottom and right in pixels."""


@dataclass(frozen=True)
class ClassMask:
    """A class for each pixel of the part of an image that the model sees, at the image's own resolution.

    Attributes:
        name: the file, for messages.
        classes: integers (height, width), as they are in the file.
        view: where the model's input is in the pixels of this map: top, left, bottom, right. None if it covers the map;
            else the input is larger, because the image was padded.
    """

    name: str
    classes: Array
    view: View | None = None


@dataclass(frozen=True)
class DepthMap:
    """A depth for each pixel of the part of an image that the model sees, at the image's own resolution.

    Attributes:
        name: the file, for messages.
        depth: (height, width), as in the file: floating point in metres, or integers in the unit of the data set.
        view: where the model's input is in the pixels of this map: top, left, bottom, right. None if it covers the map;
            else the input is larger, because the image was padded.
    """

    name: str
    depth: Array
    view: View | None = None


@dataclass(frozen=True)
class Boxes:
    """The objects in an image.

    Attributes:
        name: the image's file, for messages.
        boxes: float64 (objects, 4): left, top, right, bottom as shares of the model's input, from 0 to 1.
        classes: integers (objects,).
        crowd: bool (objects,): True for a group of objects. Missing it or finding it changes no score.
    """

    name: str
    boxes: Array
    classes: Array
    crowd: Array


@dataclass(frozen=True)
class InstanceMasks:
    """The masks of the objects in the part of an image that the model sees, at the image's own resolution.

    Attributes:
        name: the image's file, for messages.
        masks: bytes (objects,): each mask as COCO's compressed run lengths, see `vitdeploy.data.outlines`.
        classes: integers (objects,).
        crowd: bool (objects,): True for a group of objects. Missing it or finding it changes no score.
        size: height and width of the masks.
        view: where the model's input is in the pixels of the masks: top, left, bottom, right. None if it covers them;
            else the input is larger, because the image was padded.
    """

    name: str
    masks: Array
    classes: Array
    crowd: Array
    size: tuple[int, int]
    view: View | None = None


@dataclass(frozen=True)
class Keypoints:
    """The keypoints of the person in an image.

    Attributes:
        name: the image's file, for messages.
        points: float64 (keypoints, 2): x and y in pixels of the image, from the corner of the part that the model sees.
        visible: bool (keypoints,): False for a keypoint without a label.
        scale: float64 (2,): the area of the person, and the longer side of its box, in pixels of the image.
        view: float64 (2,): height and width of the part that the model sees, in pixels of the image.
    """

    name: str
    points: Array
    visible: Array
    scale: Array
    view: Array


Label = int | ClassMask | DepthMap | Boxes | InstanceMasks | Keypoints
