"""OpenVINO's IR in a package: the names of its tensors, and a copy that tells other programs how to run it.

    <rt_info>
        <model_info>      how Model API and DL Streamer prepare images and read the answer
        <runtime_options> what OpenVINO reads itself when it compiles the model
    </rt_info>

Only these lines are added; all others stay byte for byte, and so do the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from vitdeploy import precision, targets
from vitdeploy.artifact import Artifact
from vitdeploy.commands.package import copy_file
from vitdeploy.commands.package._repository import count_threads, list_engine_files
from vitdeploy.errors import ArtifactError
from vitdeploy.targets.openvino import OpenVINO

MODEL = "model.xml"
_LARGEST = 256 << 20  # an IR has its weights in a file of their own
_END = re.compile(rb"(\s*)(</rt_info>\s*)?</net>\s*\Z")
_COMMA = re.compile(r"(?<!\\),")
_NESTED = "DEVICE_PROPERTIES"
_IN_THE_MODEL = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
"""The only property of those that `load` sets which the CPU plug-in also reads from the model (OpenVINO 2026.4)."""


def list_properties(artifact: Artifact) -> dict[str, str]:
    """Return the properties with which `load` compiles the model; the number of threads only if the recipe has one.

    AUTO takes those of the CPU as one text, in OpenVINO's notation: `DEVICE_PROPERTIES` is `{CPU:{KEY:VALUE}}`.
    """
    properties, of_cpu = _configure(artifact)
    if of_cpu:
        pairs = ",".join(f"{key}:{value}" for key, value in of_cpu.items())
        properties[_NESTED] = f"{{CPU:{{{pairs}}}}}"
    return properties


def _configure(artifact: Artifact) -> tuple[dict[str, str], dict[str, str]]:
    """Return the properties of the device, and those that AUTO passes on to the CPU."""
    manifest = artifact.manifest
    target = targets.find(manifest.recipe.target)
    assert isinstance(target, OpenVINO)
    config = target.engine(precision.kind_of(manifest.target.precision).numbers).config()
    of_cpu = config.pop(_NESTED, {}).get("CPU", {})
    if count_threads(artifact) is None:
        for properties in (config, of_cpu):
            properties.pop("INFERENCE_NUM_THREADS", None)
    return {key: str(value) for key, value in config.items()}, {key: str(value) for key, value in of_cpu.items()}


def read_names(artifact: Artifact, runs: str) -> tuple[list[str], list[str]]:
    """Return the names of inputs and outputs by which OpenVINO's servers know them, in the model's order.

    A tensor may have several names. `get_any_name`, which the servers call, returns the first in the alphabet.

    Raises:
        ArtifactError: the file is not an IR with names.
    """
    root = _parse(_read(artifact, runs), artifact.path / runs)
    layers = {layer.get("id"): layer for layer in root.iter("layer")}
    edges = {edge.get("to-layer"): edge for edge in root.iter("edge")}
    inputs = [
        _first(layer.find("output/port"), "names") for layer in layers.values() if layer.get("type") == "Parameter"
    ]
    outputs = []
    for number, layer in layers.items():
        if layer.get("type") != "Result":
            continue
        name = _first(layer, "output_names")
        if not name and (edge := edges.get(number)) is not None and edge.get("from-layer") in layers:
            ports = layers[edge.get("from-layer")].iter("port")
            name = next((_first(port, "names") for port in ports if port.get("id") == edge.get("from-port")), "")
        outputs.append(name)
    names = artifact.manifest.inputs, artifact.manifest.outputs
    if not all([*inputs, *outputs]) or [len(inputs), len(outputs)] != [len(specs) for specs in names]:
        raise ArtifactError(
            f"{artifact.path / runs} does not name the inputs and outputs of the manifest", fix="Export it again."
        )
    return inputs, outputs


def write_ir(artifact: Artifact, runs: str, folder: Path, model_info: Mapping[str, str]) -> None:
    """Write `model.xml` with the further information, and copy the weights.

    Raises:
        ArtifactError: a file was changed since the artifact was loaded, or it is not an IR.
    """
    weights = [name for name in list_engine_files(artifact, runs) if name != runs]
    for name in weights:
        copy_file(artifact, name, folder / f"model{Path(name).suffix}")
    copy_file(artifact, runs, folder / MODEL)
    content = (folder / MODEL).read_bytes()
    device, of_cpu = _configure(artifact)
    properties = device | of_cpu
    options = {_IN_THE_MODEL: properties[_IN_THE_MODEL]} if _IN_THE_MODEL in properties else {}
    sections = {"model_info": model_info, "runtime_options": options}
    added = "".join(_format_section(name, values) for name, values in sections.items() if values)
    end = _END.search(content[-4096:])
    if end is None:
        raise ArtifactError(f"{artifact.path / runs} does not end as an IR of OpenVINO", fix="Export it again.")
    head = content[: len(content) - len(end.group(0))]
    text = f"\n{added}\t</rt_info>\n</net>\n" if end.group(2) else f"\n\t<rt_info>\n{added}\t</rt_info>\n</net>\n"
    (folder / MODEL).write_bytes(head + text.encode())


def _read(artifact: Artifact, runs: str) -> bytes:
    path = artifact.file(runs)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}", fix="Run the command again.") from None
    if len(content) > _LARGEST or b"<!DOCTYPE" in content:  # entities can grow without end
        raise ArtifactError(f"{path} is not an IR of OpenVINO", fix="Export it again.")
    return content


def _parse(content: bytes, path: Path) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(content)  # noqa: S314  its size is bounded, and it defines no entities
    except ElementTree.ParseError as error:
        raise ArtifactError(f"{path} is not an IR of OpenVINO: {error}", fix="Export it again.") from None


def _first(element: ElementTree.Element | None, attribute: str) -> str:
    names = [] if element is None else _COMMA.split(element.get(attribute, ""))
    return min((name.replace("\\,", ",") for name in names if name), default="")


def _format_section(name: str, values: Mapping[str, str]) -> str:
    lines = "".join(f"\t\t\t<{key} value={quoteattr(value)} />\n" for key, value in values.items())
    return f"\t\t<{name}>\n{lines}\t\t</{name}>\n"
