"""The few calls of NVIDIA's driver library that running an engine takes, through ctypes.

libcuda.so.1 comes with the driver, on a Jetson with the board support package: wherever a GPU can run it is there, in
containers too, and its names have kept their meaning since CUDA 10. The runtime library (libcudart) is named after the
CUDA version and missing from small images; cuda-python and pycuda would have to be installed. TensorRT works in the
device's primary context, and so does this.

CUDA Driver API reference manual; `_v2` is what cuda.h calls those functions.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any

import numpy as np

from vitdeploy.errors import MeasureError, TargetUnavailable
from vitdeploy.session import Array, Closing

LIBRARY = "libcuda.so.1"

_MULTIPROCESSORS, _INTEGRATED, _MAJOR, _MINOR = 16, 18, 75, 76  # CUdevice_attribute
_MAPPED = 0x02  # CU_MEMHOSTALLOC_DEVICEMAP
_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED: TensorRT may query memory while it is captured
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a captured stream must not wait for the default one
_OUT_OF_MEMORY = 2
_HANDLE, _POINTER = c_void_p, c_uint64

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_HANDLE), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuMemAlloc_v2": (POINTER(_POINTER), c_size_t),
    "cuMemFree_v2": (_POINTER,),
    "cuMemHostAlloc": (POINTER(c_void_p), c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuMemHostGetDevicePointer_v2": (POINTER(_POINTER), c_void_p, c_uint),
    "cuMemcpyHtoDAsync_v2": (_POINTER, c_void_p, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (c_void_p, _POINTER, c_size_t, _HANDLE),
    "cuStreamCreate": (POINTER(_HANDLE), c_uint),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
    "cuEventCreate": (POINTER(_HANDLE), c_uint),
    "cuEventDestroy_v2": (_HANDLE,),
    "cuEventRecord": (_HANDLE, _HANDLE),
    "cuEventElapsedTime": (POINTER(c_float), _HANDLE, _HANDLE),
    "cuStreamBeginCapture_v2": (_HANDLE, c_int),
    "cuStreamEndCapture": (_HANDLE, POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (POINTER(_HANDLE), _HANDLE, c_uint64),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphDestroy": (_HANDLE,),
}


class CudaError(MeasureError):
    """A call that the driver refused."""


class Cuda(Closing):
    """The first GPU that this process sees, in its primary context. Close it, or use it in a `with` block.

    `context=False` is enough to ask what it is, and needs none of its memory.

    Raises:
        TargetUnavailable: there is no driver, or no GPU.
    """

    def __init__(self, *, context: bool = True) -> None:
        try:
            self._lib = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise TargetUnavailable(f"NVIDIA's driver does not load: {error}", fix=_FIX_DRIVER) from None
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._lib, name, None)
            if function is None:
                raise TargetUnavailable(f"the NVIDIA driver is too old: it has no {name}", fix=_FIX_DRIVER)
            function.argtypes, function.restype = arguments, c_int
        count = c_int()
        try:
            self._call("cuInit", 0)
            self._call("cuDeviceGetCount", byref(count))
        except CudaError as error:
            raise TargetUnavailable(error.message, fix=_FIX_DRIVER) from None
        if not count.value:
            raise TargetUnavailable("the NVIDIA driver sees no GPU", fix=_FIX_DRIVER)
        self._device, self._context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(self._device), 0)
        if context:
            self._call("cuDevicePrimaryCtxRetain", byref(self._context), self._device)
            self.activate()

    def activate(self) -> None:
        """Make the context this thread's own: contexts belong to threads."""
        self._call("cuCtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        """The GPU's name, such as `Orin`."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    @property
    def sm(self) -> str:
        """Its compute capability, such as `sm87`."""
        return f"sm{self._attribute(_MAJOR)}{self._attribute(_MINOR)}"

    @property
    def multiprocessors(self) -> int:
        """Its streaming multiprocessors: boards of one name come with fewer or more."""
        return self._attribute(_MULTIPROCESSORS)

    @property
    def integrated(self) -> bool:
        """Whether it shares the CPU's memory, as on a Jetson."""
        return bool(self._attribute(_INTEGRATED))

    @property
    def memory_bytes(self) -> int:
        """All of its memory."""
        total = c_size_t()
        self._call("cuDeviceTotalMem_v2", byref(total), self._device)
        return total.value

    def allocate(self, size: int) -> int:
        """Device memory of `size` bytes; its address."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), max(size, 1))
        return address.value

    def free(self, address: int) -> None:
        """Give device memory back."""
        self._call("cuMemFree_v2", address)

    def allocate_pinned(self, size: int) -> tuple[int, Array]:
        """Host memory that the GPU reads at full speed, and sees by itself: its address, and its bytes as an array."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), max(size, 1), _MAPPED)
        assert address.value is not None
        view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))
        return address.value, view

    def mapped(self, host_address: int) -> int:
        """The device address of pinned host memory."""
        address = c_uint64()
        self._call("cuMemHostGetDevicePointer_v2", byref(address), host_address, 0)
        return address.value

    def free_pinned(self, host_address: int) -> None:
        """Give pinned memory back."""
        self._call("cuMemFreeHost", host_address)

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy host memory to the device, in the stream's order."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy device memory to the host, in the stream's order."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, stream)

    def stream(self) -> int:
        """A new stream."""
        return self._made("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until all work in the stream is done."""
        self._call("cuStreamSynchronize", stream)

    def event(self) -> int:
        """A new event, with the GPU's own time."""
        return self._made("cuEventCreate", 0)

    def record(self, event: int, stream: int) -> None:
        """Take the time when the stream gets here."""
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Milliseconds between two recorded events, on the GPU's clock."""
        passed = c_float()
        self._call("cuEventElapsedTime", byref(passed), start, end)
        return passed.value

    def begin_capture(self, stream: int) -> None:
        """From here on the stream's work is noted down and not done."""
        self._call("cuStreamBeginCapture_v2", stream, _RELAXED)

    def end_capture(self, stream: int) -> int:
        """What was noted down, ready to launch."""
        graph = c_void_p()
        self._call("cuStreamEndCapture", stream, byref(graph))
        executable = c_void_p()
        try:
            self._call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Do what was noted down."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy(
        self, *, streams: tuple[int, ...] = (), events: tuple[int, ...] = (), graphs: tuple[int, ...] = ()
    ) -> None:
        """Give these back."""
        for graph in graphs:
            self._call("cuGraphExecDestroy", graph)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        for stream in streams:
            self._call("cuStreamDestroy_v2", stream)

    def close(self) -> None:
        """Let go of the context."""
        if self._context.value:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _made(self, name: str, flags: int) -> int:
        handle = c_void_p()
        self._call(name, byref(handle), flags)
        return handle.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            fix = _FIX_MEMORY if code == _OUT_OF_MEMORY else _FIX_CALL
            raise CudaError(f"CUDA refused {name}: {self._words(code)}", fix=fix)

    def _words(self, code: int) -> str:
        text = c_char_p()
        describe = self._lib.cuGetErrorString
        describe.argtypes, describe.restype = (c_int, POINTER(c_char_p)), c_int
        told = describe(code, byref(text)) == 0 and text.value
        return f"{text.value.decode(errors='replace')} ({code})" if told and text.value else f"error {code}"


_FIX_DRIVER = "Run it on the machine with the GPU; in a container, start that with --runtime nvidia (or --gpus all)."
_FIX_MEMORY = "Close what else uses the GPU's memory, or use a smaller batch."
_FIX_CALL = "Look into dmesg for the driver's own words; a restart of the program gives it a new context."
