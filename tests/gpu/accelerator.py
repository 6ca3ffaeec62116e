"""Any accelerator that torch knows, as its users use it: through `torch.accelerator` alone.

Nothing generic holds a stream until the host says so: a test that needs a gate is skipped, unless
somebody has told how to make one, in `AcceleratorWorld.gate_makers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, ClassVar, Self

import pytest

import gpufut
from tests.gpu.world import TorchArrays, streams_of_gpufut, streams_used_again
from tests.worlds import ELEMENTS, Gate, World

__all__ = ["AcceleratorWorld", "why_absent"]

_REPEATS = 100  # kernels that take a while together


def why_absent(kind: str) -> str | None:
    """Why torch has no accelerator of a type here; None if it has."""
    try:
        import torch
    except ImportError:
        return "torch is not installed"
    found: Any = torch.accelerator.current_accelerator()
    if found is None or found.type != kind:
        has = "none" if found is None else repr(found.type)
        return f"torch has no such accelerator here; it has {has}"
    return None if torch.accelerator.device_count() else "torch finds no such device"


class AcceleratorLibrary(TorchArrays):
    """torch, on an accelerator."""

    def __init__(self, kind: str) -> None:
        import torch

        self._torch: Any = torch
        self._kind = kind

    def stream(self, device: int) -> Any:
        return self._torch.Stream(device=self._device(device))

    @contextmanager
    def on(self, stream: Any) -> Iterator[Any]:
        accelerator = self._torch.accelerator
        device = accelerator.current_device_index()
        before = accelerator.current_stream(stream.device_index)
        accelerator.set_stream(stream)
        try:
            yield stream
        finally:
            accelerator.set_stream(before)
            accelerator.set_device_index(device)

    def current(self, device: int) -> Any:
        return self._torch.accelerator.current_stream(device)

    def set_current(self, stream: Any) -> None:
        device = self._torch.accelerator.current_device_index()
        self._torch.accelerator.set_stream(stream)
        self._torch.accelerator.set_device_index(device)

    def empty(self, device: int) -> Any:
        return self._torch.empty(ELEMENTS, dtype=self._torch.float32, device=self._device(device))

    def fill(self, array: Any, value: float, seconds: float) -> None:
        for number in range(_REPEATS if seconds > 1e-4 else 0):
            array.fill_(float(number))
        array.fill_(value)

    def _device(self, index: int) -> Any:
        return self._torch.device(self._kind, index)


class AcceleratorWorld(World):
    """An accelerator through torch's generic calls.

    Args:
        kind: What torch calls the type of device.
    """

    gate_makers: ClassVar[dict[str, Callable[[], Gate]]] = {}

    def __init__(self, kind: str, features: frozenset[str]) -> None:
        import torch

        self.name = kind
        self.features = features
        count = torch.accelerator.device_count()
        self.devices = tuple(gpufut.Device(kind, index) for index in range(count))
        self.libraries = self.used = (AcceleratorLibrary(kind),)
        self._torch: Any = torch
        self._streams: list[Any] = []
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        self._undo.enter_context(streams_used_again(self.devices[0].type))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()
        self._undo.close()

    def stream(self, device: int = 0) -> Any:
        library: Any = self.used[0]
        # torch's streams come from a pool, in turn: a test's are kept apart from each other, and
        # from gpufut's, as far as the pool reaches.
        taken = streams_of_gpufut(self.devices[0].type)
        taken |= {(each.device_index, each.stream_id) for each in self._streams}
        for _ in range(64):
            stream = library.stream(device)
            if (device, stream.stream_id) not in taken:
                break
        self._streams.append(stream)
        return stream

    def handle(self, stream: Any) -> int:
        if isinstance(stream, gpufut.Stream):
            return stream.handle
        handle: int = stream.stream_id
        return handle

    def device_of(self, stream: Any) -> int:
        if isinstance(stream, gpufut.Stream):
            return stream.device.index
        device: int = stream.device_index
        return device

    def gate(self) -> Gate:
        make = self.gate_makers.get(self.devices[0].type)
        if make is None:
            pytest.skip("needs a gate, which torch has for no device in general")
        return make()

    def touched(self, device: int) -> bool:
        raise NotImplementedError

    def finish(self) -> None:
        for device in self.devices:
            self._torch.accelerator.synchronize(device.index)

    def gates_expired(self) -> int:
        return 0
