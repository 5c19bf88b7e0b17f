"""Forms of preprocessing that models have, for a comparison of the examples with vitdeploy."""

from __future__ import annotations

from typing import Any

PREPROCESSINGS: dict[str, dict[str, Any]] = {
    "timm": {"size": (224, 224), "crop_pct": 0.9},
    "torchvision": {"size": (224, 224), "resize_to": (232, 232), "interpolation": "bilinear", "crop_rounding": "even"},
    "transformers": {"size": (96, 96), "resize": "exact", "interpolation": "bilinear", "fill": (1, 2, 3)},
    "enlarged": {"size": (700, 900), "resize": "exact"},
    "oblong": {"size": (96, 160), "crop_pct": 0.875, "interpolation": "lanczos", "crop_rounding": "down"},
    "padded": {"size": (128, 128), "crop_pct": 1.1},
    "letterbox": {"size": (128, 128), "resize": "letterbox"},
    "letterbox at the end": {"size": (96, 160), "resize": "letterbox", "padding": "end", "fill": (114, 114, 114)},
    "small stays": {
        "size": (1000, 1000), "resize": "letterbox", "enlarge": False, "padding": "end", "size_divisor": 16,
    },
    "detr": {
        "size": (320, 320), "resize": "letterbox", "shortest_edge": 200, "longest_edge": 320, "padding": "end",
        "fill": (0, 0, 0), "mask": True, "interpolation": "bilinear",
    },
    "longest edge": {
        "size": (256, 256), "resize": "letterbox", "longest_edge": 250, "size_divisor": 14, "size_rounding": "up",
    },
    "even": {"size": (200, 200), "resize": "letterbox", "size_divisor": 8, "size_rounding": "even"},
    "nearest": {"size": (200, 200), "resize": "letterbox", "size_divisor": 32, "size_rounding": "nearest"},
    "bgr": {"size": (64, 64), "channel_order": "bgr", "mean": (0.1, 0.5, 0.9), "std": (1, 1, 1), "crop_pct": 1.2},
    "grey": {"size": (28, 28), "mean": (0.5,), "std": (0.25,), "crop_pct": 0.8},
}  # fmt: skip
