"""Switch off what engines and model libraries report about their users.

Seen in the packages themselves (ONNX Runtime 1.32, OpenVINO 2026.4, huggingface_hub 2.4, MLflow 3.17):

- ONNX Runtime keeps a device id and a database in ~/.cache/Microsoft and a file in the temporary folder as soon as it
  is imported, and sends events to a host of Microsoft. It reads ORT_DISABLE_TELEMETRY at that moment.
- `import openvino` sends an event to Google Analytics through the package openvino_telemetry, and keeps an id and a
  count in ~/intel. The only switches are a file in the user's home and the variables of CI systems, which other
  programs read too. Without that package it uses an empty stand-in of its own.
- MLflow sends an event for each run that is logged. DO_NOT_TRACK counts for it as "true" only.
- huggingface_hub and transformers add facts about the machine to each download.
- Ray sends facts about a cluster from its head, and notes there which libraries its programs use.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_REPORTER = "openvino_telemetry"


def switch_off() -> None:
    """Switch all of it off in this process, and by the environment in its children.

    `import vitdeploy` calls it before anything imports an engine. An engine that the program has imported before has
    reported that already; ONNX Runtime then stops.
    """
    os.environ.update(_VARIABLES)
    modules: dict[str, Any] = sys.modules
    modules.setdefault(_REPORTER, None)  # for None, `import` raises ImportError
    engine = modules.get("onnxruntime")
    if engine is not None and hasattr(engine, "disable_telemetry_events"):
        engine.disable_telemetry_events()


def environment_without() -> dict[str, str]:
    """Return the environment for a child that is not vitdeploy. CI=true is the switch that OpenVINO has for it."""
    return {**os.environ, **_VARIABLES, "CI": "true"}
