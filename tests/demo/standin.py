"""A GPU for the demo that is not there: the stand-in of the tests, with what the demo asks besides.

That is names of devices, events with timing, and the package `kernels`, of which the demo's three
kernels are played by the NumPy bodies that the simulated device runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import gpufut
from gpufut.demo import filters
from tests.standin.driver import active
from tests.standin.world import StandInWorld
from tests.worlds import KINDS

__all__ = ["DURATIONS", "Kernels", "standin"]

DURATIONS = {"denoise": 400e-6, "edges": 30e-6, "histogram": 20e-6}  # simulated seconds


class Kernels(ModuleType):
    """The package `kernels`: the demo's three, on arrays of whichever library.

    Attributes:
        warmed: The devices on which everything was loaded.
    """

    def __init__(self) -> None:
        super().__init__("kernels")
        self.warmed: list[int] = []

    def warm_up(self) -> None:
        self.warmed.append(active().enter())

    def denoise(self, photo: Any, out: Any, scratch: Any, *, stream: int) -> None:
        assert tuple(scratch.shape) == (4, *photo.shape)

        def body(photo: Any, out: Any, scratch: Any) -> None:
            scratch.fill(photo.flat[0])
            filters.denoise(photo, out)
            assert (scratch == photo.flat[0]).all()

        self._launch("denoise", body, [photo], [out, scratch], stream)

    def edges(self, image: Any, out: Any, *, stream: int) -> None:
        self._launch("edges", filters.edges, [image], [out], stream)

    def histogram(self, magnitude: Any, out: Any, *, stream: int) -> None:
        self._launch("histogram", filters.histogram, [magnitude], [out], stream)

    def _launch(
        self, name: str, body: Callable[..., None], reads: Any, writes: Any, stream: int
    ) -> None:
        cuda = active()
        device = cuda.enter()  # as Numba: the current device, or device 0
        launched_on = cuda.stream(stream)
        assert launched_on.device == device, "a launch on a stream of another device"
        cuda.launch(
            launched_on,
            body,
            reads=[_operand(each) for each in reads],
            writes=[_operand(each) for each in writes],
            duration=DURATIONS[name],
            name=name,
        )


def _operand(array: Any) -> Any:
    if type(array).__module__ == "cupy":  # its interface would ask the driver for a stream
        return active().array_at(array.data.ptr, array.shape, array.dtype)
    interface = array.__cuda_array_interface__
    return active().array_at(
        interface["data"][0], tuple(interface["shape"]), np.dtype(interface["typestr"])
    )


def _time_of(handle: int) -> float:
    """When an event came, in simulated milliseconds."""
    mark = active().event(handle).mark
    assert mark is not None, "an event that was never recorded"
    assert mark.op is None or mark.op.done, "an event that has not come"
    return 1e3 * (mark.time if mark.op is None else max(mark.time, mark.op.end))


@contextmanager
def standin(
    library: str, *, schedule: str = "latest", seed: int = 0, devices: int = 2
) -> Iterator[StandInWorld]:
    """Two CUDA devices with one library, and Numba for the kernels."""
    absent = KINDS["standin"].why_absent()
    if absent is not None:
        pytest.skip(absent)
    loaded = tuple(dict.fromkeys((library, "numba")))
    world = StandInWorld("demo", (library,), loaded, schedule, seed)
    world.cuda.count = devices
    before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
    try:
        with world, pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "kernels", Kernels())
            {"torch": _time_torch, "cupy": _time_cupy, "numba": _time_numba}[library](patch)
            yield world
    finally:
        gpufut.set_manager(before)


def _time_torch(patch: pytest.MonkeyPatch) -> None:
    import torch

    cuda: Any = torch.cuda

    class Event(cuda.Event):  # type: ignore[misc]
        def __init__(self, enable_timing: bool = False, **how: Any) -> None:
            super().__init__(enable_timing, **how)
            self.has_time = enable_timing

        def elapsed_time(self, end: Event) -> float:
            assert self.has_time
            assert end.has_time
            return _time_of(end.cuda_event) - _time_of(self.cuda_event)

    patch.setattr(cuda, "Event", Event)
    patch.setattr(cuda, "get_device_name", lambda device: f"Stand-in {device.index}")


def _time_cupy(patch: pytest.MonkeyPatch) -> None:
    import cupy

    class Event(cupy.cuda.Event):  # type: ignore[misc]
        def __init__(self, **how: Any) -> None:
            super().__init__(**how)
            assert not how.get("disable_timing")

    def elapsed(first: Event, second: Event) -> float:
        return _time_of(second.ptr) - _time_of(first.ptr)

    patch.setattr(cupy.cuda, "Event", Event)
    patch.setattr(cupy.cuda, "get_elapsed_time", elapsed)
    patch.setattr(
        cupy.cuda.runtime,
        "getDeviceProperties",
        lambda index: {"name": f"Stand-in {index}".encode()},
    )


def _time_numba(patch: pytest.MonkeyPatch) -> None:
    from numba import cuda

    from tests.standin import numba_cuda as standin_numba

    untimed, timed = cuda.event, []

    def event(timing: bool = True) -> Any:
        made = untimed(timing)
        if timing:
            timed.append(made)
        return made

    def elapsed(first: Any, second: Any) -> float:
        assert first in timed
        assert second in timed
        return _time_of(int(second.handle)) - _time_of(int(first.handle))

    patch.setattr(cuda, "event", event)
    patch.setattr(cuda, "event_elapsed_time", elapsed)
    kind = standin_numba._Device
    patch.setattr(kind, "name", property(lambda device: f"Stand-in {device.id}"), raising=False)
