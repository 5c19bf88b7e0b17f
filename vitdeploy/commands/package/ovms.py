"""A model repository of OpenVINO Model Server (OVMS): `NAME/1/model.xml`, its weights, and `config.json`.

OVMS computes in bfloat16 on CPUs that have it, unless it is told otherwise: `plugin_config` has what `load` sets.

Sources: "Model Server Parameters" and "Preparing a Model Repository" in OVMS's documentation. None of this was run with
OVMS; the tests read the IR with OpenVINO and with Model API.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from vitdeploy.artifact import Artifact
from vitdeploy.commands.package import Packager
from vitdeploy.commands.package._model_info import describe_model
from vitdeploy.commands.package._openvino_ir import list_properties, write_ir
from vitdeploy.commands.package._repository import VERSION, name_model, require_engine
from vitdeploy.errors import UsageError

CONFIG = "config.json"
_MOUNTED = "/models"
_NOT_RUN = "not run: vitdeploy's tests have no OpenVINO Model Server; the keys follow its documentation"


class ModelServer(Packager):
    """`config.json` and the IR, for OVMS.

    Attributes:
        name: of the model on the server; empty: that of the artifact's folder.
    """

    name: str = ""

    def write(self, artifact: Artifact, folder: Path) -> tuple[str, ...]:
        """Write the repository.

        Raises:
            UsageError: the artifact is not for OpenVINO, or a bundle, or the name is that of the configuration.
        """
        target = artifact.manifest.target
        if target.kind != "openvino":
            also = ", which OVMS would compile by other rules" if target.kind == "onnxruntime" else ""
            raise UsageError(
                f"OpenVINO Model Server serves artifacts of the target openvino, and {artifact.path} is for "
                f"{target.kind}{also}",
                fix="Export it with --target openvino.",
            )
        runs = require_engine(artifact, "OpenVINO Model Server")
        name = name_model(artifact, self.name)
        if name.lower() == CONFIG:
            raise UsageError(
                f"a model cannot be named {name}, as the configuration beside it is", fix="Choose another --name."
            )
        info, reason = describe_model(artifact.manifest)
        (folder / name / VERSION).mkdir(parents=True)
        write_ir(artifact, runs, folder / name / VERSION, info)
        config = {
            "name": name,
            "base_path": f"{_MOUNTED}/{name}",
            "target_device": target.device,
            "plugin_config": list_properties(artifact),
        }
        text = json.dumps({"model_config_list": [{"config": config}]}, indent=2)
        (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
        return (
            _NOT_RUN,
            f"config.json expects this folder at {_MOUNTED}: elsewhere change base_path",
            *note_model_info(info, reason, artifact),
        )

    def suggest(self, package: Path) -> str:
        """Return a command that serves the repository."""
        mount = shlex.quote(f"{package.resolve()}:{_MOUNTED}:ro")
        return (
            f"docker run --rm -p 9000:9000 -p 8000:8000 -v {mount} openvino/model_server:latest "
            f"--config_path {_MOUNTED}/{CONFIG} --port 9000 --rest_port 8000"
        )


def note_model_info(info: dict[str, str], reason: str, artifact: Artifact) -> tuple[str, ...]:
    """Return what to know about `model_info`: what it cannot say, or why there is none."""
    if not info:
        return (f"model.xml has no model_info: {reason}",)
    properties = list_properties(artifact)
    hint = f"INFERENCE_PRECISION_HINT={properties['INFERENCE_PRECISION_HINT']}"
    return (
        "Model API and DL Streamer resize without antialiasing: for the answers of predict, give them images that are "
        "resized before",
        f"they take no settings from the model: give them {hint}, as load does, or they may compute in bfloat16",
    )
