"""`import tensorrt` in processes that tests start: the fake of $FAKE_TENSORRT, or the recording $FAKE_RECORDING.

$FAKE_FAULTS lists faults of the fake, with commas. "crash" ends the process in a build, "hang" never ends one.
$FAKE_SAYS is printed by every build and by the inspector. $FAKE_PLANTED lists faults of `miscompile`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.fakes import miscompile, replay
from tests.fakes import tensorrt as _fakes
from tests.fakes.guarded import say

_cuda = ctypes.CDLL("libcuda.so.1")
_recording = os.environ.get("FAKE_RECORDING")
_module: Any = (
    _fakes.module(os.environ["FAKE_TENSORRT"], _cuda) if _recording is None else replay.module(Path(_recording), _cuda)
)
_module.planted = [miscompile.fault(name) for name in filter(None, os.environ.get("FAKE_PLANTED", "").split(","))]
_faults = set(filter(None, os.environ.get("FAKE_FAULTS", "").split(",")))
_module.faults |= _faults


def _crash(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _hang(*_: Any) -> None:
    time.sleep(3600)


if _faults & {"crash", "hang"}:
    _module.Builder.build_serialized_network = _crash if "crash" in _faults else _hang
if _says := os.environ.get("FAKE_SAYS"):
    _build = _module.Builder.build_serialized_network

    def _talk(builder: Any, network: Any, config: Any) -> Any:
        say(builder._logger, "WARNING", _says)
        return _build(builder, network, config)

    _inspect = _module.EngineInspector.get_engine_information
    _module.Builder.build_serialized_network = _talk
    _module.EngineInspector.get_engine_information = lambda inspector, form: _inspect(inspector, form) + _says
sys.modules[__name__] = _module
