"""The calls of NVIDIA's driver library that are needed to run an engine, through ctypes.

libcuda.so.1 is part of the driver (on a Jetson, of the board support package). So it is wherever a GPU works, even in
containers. Its functions have not changed since CUDA 10. The runtime library (libcudart) is named after the CUDA
version and missing from small images, and cuda-python and pycuda would have to be installed. Like TensorRT, this works
in the device's primary context.

Source: CUDA Driver API reference manual. Names with `_v2` are those that cuda.h maps the functions to.
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
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: a captured stream must not wait for the default stream
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
    """The first visible GPU, in its primary context. Close it, or use it in a `with` block.

    Args:
        context: whether to open the context. False is enough to read the GPU's properties, and takes none of its
            memory.

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
        """Make the context current in this thread. Each thread has its own current context."""
        self._call("cuCtxSetCurrent", self._context)

    @property
    def name(self) -> str:
        """The GPU's name, such as `Orin`."""
        text = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", text, len(text), self._device)
        return text.value.decode(errors="replace")

    @property
    def sm(self) -> str:
        """The compute capability, such as `sm87`."""
        return f"sm{self._attribute(_MAJOR)}{self._attribute(_MINOR)}"

    @property
    def multiprocessors(self) -> int:
        """The number of streaming multiprocessors. GPUs of one name can differ in it."""
        return self._attribute(_MULTIPROCESSORS)

    @property
    def integrated(self) -> bool:
        """Return whether it shares the CPU's memory, as on a Jetson."""
        return bool(self._attribute(_INTEGRATED))

    @property
    def memory_bytes(self) -> int:
        """The size of its memory."""
        total = c_size_t()
        self._call("cuDeviceTotalMem_v2", byref(total), self._device)
        return total.value

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes of device memory; return their address."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), max(size, 1))
        return address.value

    def free(self, address: int) -> None:
        """Free device memory."""
        self._call("cuMemFree_v2", address)

    def allocate_pinned(self, size: int) -> tuple[int, Array]:
        """Allocate host memory that the GPU can map; return its address and its bytes as an array."""
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), max(size, 1), _MAPPED)
        assert address.value is not None
        view = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address.value))
        return address.value, view

    def device_address(self, host_address: int) -> int:
        """Return the device address of pinned host memory."""
        address = c_uint64()
        self._call("cuMemHostGetDevicePointer_v2", byref(address), host_address, 0)
        return address.value

    def free_pinned(self, host_address: int) -> None:
        """Free pinned host memory."""
        self._call("cuMemFreeHost", host_address)

    def copy_to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy host memory to the device, as work of the stream."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size, stream)

    def copy_to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy device memory to the host, as work of the stream."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size, stream)

    def create_stream(self) -> int:
        """Create a stream."""
        return self._create("cuStreamCreate", _NON_BLOCKING)

    def synchronize(self, stream: int) -> None:
        """Wait until all work in the stream is done."""
        self._call("cuStreamSynchronize", stream)

    def create_event(self) -> int:
        """Create an event that can record the GPU's time."""
        return self._create("cuEventCreate", 0)

    def record(self, event: int, stream: int) -> None:
        """Record the time at which the stream reaches this point."""
        self._call("cuEventRecord", event, stream)

    def elapsed_ms(self, start: int, end: int) -> float:
        """Return the milliseconds between two recorded events, by the GPU's clock."""
        elapsed = c_float()
        self._call("cuEventElapsedTime", byref(elapsed), start, end)
        return elapsed.value

    def begin_capture(self, stream: int) -> None:
        """Begin to capture the stream's work instead of doing it."""
        self._call("cuStreamBeginCapture_v2", stream, _RELAXED)

    def end_capture(self, stream: int) -> int:
        """Return the captured work as a graph that can be launched."""
        graph = c_void_p()
        self._call("cuStreamEndCapture", stream, byref(graph))
        executable = c_void_p()
        try:
            self._call("cuGraphInstantiateWithFlags", byref(executable), graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return executable.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Run a captured graph."""
        self._call("cuGraphLaunch", graph, stream)

    def destroy(
        self, *, streams: tuple[int, ...] = (), events: tuple[int, ...] = (), graphs: tuple[int, ...] = ()
    ) -> None:
        """Destroy streams, events and graphs."""
        for graph in graphs:
            self._call("cuGraphExecDestroy", graph)
        for event in events:
            self._call("cuEventDestroy_v2", event)
        for stream in streams:
            self._call("cuStreamDestroy_v2", stream)

    def close(self) -> None:
        """Release the context."""
        if self._context.value:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _create(self, name: str, flags: int) -> int:
        handle = c_void_p()
        self._call(name, byref(handle), flags)
        return handle.value or 0

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            fix = _FIX_MEMORY if code == _OUT_OF_MEMORY else _FIX_CALL
            raise CudaError(f"CUDA refused {name}: {self._describe_error(code)}", fix=fix)

    def _describe_error(self, code: int) -> str:
        text = c_char_p()
        describe = self._lib.cuGetErrorString
        describe.argtypes, describe.restype = (c_int, POINTER(c_char_p)), c_int
        if describe(code, byref(text)) != 0 or not text.value:
            return f"error {code}"
        return f"{text.value.decode(errors='replace')} ({code})"


_FIX_DRIVER = "Run it on the machine with the GPU. Start a container with --runtime nvidia (or --gpus all)."
_FIX_MEMORY = "Close other programs that use the GPU's memory, or use a smaller batch."
_FIX_CALL = "Check dmesg for the driver's messages. Restart the program to get a new context."
