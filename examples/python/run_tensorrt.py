"""Run an artifact of the target tensorrt on images, without vitdeploy.

usage: run_tensorrt.py DIR IMAGE…

Needs numpy, Pillow, and TensorRT with its Python package. The GPU's memory comes from the driver library, through
ctypes. NOT RUN on a GPU: it was run against the TensorRT of vitdeploy's tests, which computes on the CPU.
"""

from __future__ import annotations

import ctypes
import math
import sys

import numpy as np
import tensorrt as trt
from deployed_model import Arrays, Model, answer_images

DRIVER = "libcuda.so.1"


class Logger(trt.ILogger):
    """TensorRT's warnings and errors, on standard error."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)  # pybind wants it called by this name

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        """Print a message."""
        if severity.name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
            print(f"TensorRT: {message}", file=sys.stderr)


class Driver:
    """The calls of the GPU's driver that an engine needs, on the first GPU and one stream. Close it at the end."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(DRIVER)
        device, context, self._stream = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        self("cuInit", 0)
        self("cuDeviceGet", ctypes.byref(device), 0)
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self("cuCtxSetCurrent", context)
        self("cuStreamCreate", ctypes.byref(self._stream), 1)  # 1: it does not wait for the default stream
        self._device, self._memory = device, []

    def __call__(self, name: str, *arguments: object) -> None:
        """Call a function of the driver; an error code is an error."""
        if code := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name} failed with CUDA error {code}")

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return self._stream.value

    def allocate(self, shape: tuple[int, ...], dtype: type[np.generic]) -> tuple[int, np.ndarray]:
        """Return the address of new memory on the GPU, and an array of that size in pinned memory of the host."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        address, host = ctypes.c_uint64(), ctypes.c_void_p()
        self("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        self._memory.append(("cuMemFree_v2", address))
        self("cuMemHostAlloc", ctypes.byref(host), ctypes.c_size_t(size), 0)
        self._memory.append(("cuMemFreeHost", host))
        buffer = (ctypes.c_uint8 * size).from_address(host.value)
        return address.value, np.frombuffer(buffer, dtype).reshape(shape)

    def copy_to_gpu(self, array: np.ndarray, address: int) -> None:
        """Copy an array of `allocate` to the GPU."""
        pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), pointer, size, self._stream)

    def copy_from_gpu(self, address: int, array: np.ndarray) -> None:
        """Copy from the GPU into an array of `allocate`, and wait for it."""
        pointer, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self("cuMemcpyDtoHAsync_v2", pointer, ctypes.c_uint64(address), size, self._stream)
        self("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Free the memory, the stream and the context."""
        for free, address in self._memory:
            self(free, address)
        self("cuStreamDestroy_v2", self._stream)
        self("cuDevicePrimaryCtxRelease_v2", self._device)


def main(folder: str, *paths: str) -> int:
    """Answer the images."""
    model = Model(folder)
    driver = Driver()
    try:
        return answer(model, driver, list(paths))
    finally:
        driver.close()


def answer(model: Model, driver: Driver, paths: list[str]) -> int:
    """Open the engine and answer the images."""
    runtime = trt.Runtime(Logger())
    engine = runtime.deserialize_cuda_engine(model.file.read_bytes())
    if engine is None:
        raise SystemExit(f"{model.file} is not for this TensorRT and this GPU: compile it here")
    context = engine.create_execution_context()
    context.set_input_shape(model.input, (model.batch, *model.usage["inputs"][0]["shape"][1:]))
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    addresses, arrays = {}, {}
    for name in names:
        shape, dtype = tuple(context.get_tensor_shape(name)), trt.nptype(engine.get_tensor_dtype(name))
        addresses[name], arrays[name] = driver.allocate(shape, dtype)
        context.set_tensor_address(name, addresses[name])

    def run(images: np.ndarray) -> Arrays:
        arrays[model.input][...] = images
        driver.copy_to_gpu(arrays[model.input], addresses[model.input])
        if not context.execute_async_v3(driver.stream):
            raise RuntimeError("TensorRT does not run the engine")
        outputs = [name for name in names if name != model.input]
        for name in outputs:
            driver.copy_from_gpu(addresses[name], arrays[name])
        # The engine may call its outputs otherwise than the manifest: they match by their order.
        return {known: arrays[name] for known, name in zip(model.outputs, outputs, strict=True)}

    return answer_images(model, paths, run)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(f"usage: {sys.argv[0]} DIR IMAGE…")
    raise SystemExit(main(*sys.argv[1:]))
