"""What identifies a person, a machine or a network is replaced, wherever it stands; versions and layers stay."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import psutil
import pytest

from vitdeploy.commands.board import scrub
from vitdeploy.commands.board.scrub import Scrubber, make_scrubber

PLANTED = {
    "ada.lovelace": "<user>", "analytical-engine": "<host>", "192.168.17.4": "<ip>", "10.20.30.40": "<ip>",
    "fe80::1ff:fe23:4567:890a": "<ip>", "2001:db8::8a2e:370:7334": "<ip>", "48:b0:2d:12:34:56": "<mac>",
    "GPU-5d4f1a2b-0c3d-4e5f-8a9b-1c2d3e4f5a6b": "<uuid>", "5d4f1a2b-0c3d-4e5f-8a9b-1c2d3e4f5a6b": "<uuid>",
    "/home/ada.lovelace/secret/graph.onnx": "<path>", "/root/.cache/x": "<path>", "/media/stick/model.onnx": "<path>",
    "/tmp/vitdeploy-scratch-board-x1/graph.onnx": "<path>", "/workspace/customer/a.onnx": "<path>",
    "ada@example.org": "<mail>", "https://gitlab.example.org/x?token=abc": "<url>", "1421523012345": "<serial>",
}  # fmt: skip
SCRUBBER = Scrubber(
    {"ada.lovelace": "<user>", "analytical-engine": "<host>", "1421523012345": "<serial>"}, frozenset({"10.3.0.30"})
)
KEPT = (
    "TensorRT 10.16.2.8", "libnvinfer10 10.3.0.30-1+cuda12.5", "[TensorRT v100300]", "v1.7.1.116", "version: 8.6.1.6",
    "10.3.0.30", "cuDNN 8.9.6.50", "/usr/src/tensorrt/bin/trtexec", "/etc/nv_tegra_release", "/sys/class/hwmon/hwmon1",
    "[defaultAllocator.cpp::allocate::31]", "nvinfer1::builder", "11-25-2026 10:15:02", "4756mW/4712mW",
    "blocks.0.attn/Attention/qk", "{ForeignNode[blocks.0...head]}", "_gemm_mha_v2_0xba7f36183818e6fd55d44d3b60d0f5af",
    "[ONNX Layer: a/b]\x1e[ONNX Layer: c]", "Dimensions: [1,65,64], Strides: [4160,64,1]", "nvidia-l4t-core", "0.5 / 2",
)  # fmt: skip


@pytest.mark.parametrize("secret", PLANTED)
@pytest.mark.parametrize("around", ["{}", "in {}, there", "at={}", '"{}"', "({})", "a\n{}\nb", "[{}]"])
def test_what_identifies_is_replaced(secret: str, around: str) -> None:
    assert SCRUBBER.scrub(around.format(secret)) == around.format(PLANTED[secret])


@pytest.mark.parametrize("text", KEPT)
def test_what_does_not_identify_stays(text: str) -> None:
    assert SCRUBBER.scrub(text) == text


def test_serial_numbers_are_found_by_their_label() -> None:
    assert SCRUBBER.scrub("Serial Number: 0324A; serial=77X") == "Serial Number: <serial>; serial=<serial>"


def test_keys_and_values_of_json_are_scrubbed() -> None:
    value = {secret: [{"inner": f"x {secret} y"}, 3, None] for secret in PLANTED}
    text = json.dumps(SCRUBBER.scrub_values(value))
    assert not [secret for secret in PLANTED if secret in text]
    assert set(json.loads(text)) == set(PLANTED.values())


def test_this_machine_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("USER", "grace")
    monkeypatch.setattr(scrub.socket, "gethostname", lambda: "mark-one.navy.example")
    monkeypatch.setattr(scrub, "_read", lambda path: "S-4711-X" if "serial" in path else "")
    monkeypatch.chdir(tmp_path)
    hidden = make_scrubber(["10.16.1.2"]).scrub(f"grace mark-one mark-one.navy.example S-4711-X {tmp_path} 10.16.1.2")
    assert hidden == "<user> <host> <host> <serial> <path> 10.16.1.2"


def test_addresses_of_this_machine_are_hidden() -> None:
    scrubber = make_scrubber()
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            plain = address.address.partition("%")[0]
            if not plain.startswith(("127.", "00:00:00")) and plain != "::1":
                assert plain not in scrubber.scrub(f"at {plain} now")


@pytest.mark.parametrize("name", ["nvidia", "root", "ubuntu", "jetson", "ab"])
def test_a_name_that_everybody_has_is_a_word_of_the_log(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", name)
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert make_scrubber().scrub(f"{name}-l4t-core {name}") == f"{name}-l4t-core {name}"
    assert make_scrubber().scrub(f"/home/{name}/x") == "<path>"
