"""The runtime of the simulated device: maps gpufut's handles to the active machine's streams."""

from __future__ import annotations

from typing import Final, cast

from gpufut import runtimes, sim
from gpufut.errors import DeviceUnavailableError
from gpufut.runtimes import EventHandle, StreamHandle

__all__ = ["machine", "serve"]


def machine() -> sim.Machine:
    """The active simulated machine.

    Raises:
        DeviceUnavailableError: None is active.
    """
    active = sim.active()
    if active is None:
        raise DeviceUnavailableError(
            "no simulated machine is active: work inside `with gpufut.sim.Machine():`"
        )
    return active


def _event(event: EventHandle) -> sim.Event:
    return cast(sim.Event, event)


class SimRuntime:
    """Streams and events of the active `gpufut.sim.Machine`."""

    type = "sim"
    thread_stream: StreamHandle | None = None

    def canonical(self, handle: StreamHandle) -> StreamHandle:
        return handle

    def lasting(self, handle: StreamHandle) -> StreamHandle:
        return handle

    def capture(self, device: int, stream: StreamHandle) -> int | None:
        return machine().stream_from_handle(stream).capture_id

    def can_be_captured(self, handle: StreamHandle) -> bool:
        stream = machine().stream_from_handle(handle)
        return stream is not machine().default_stream(stream.device)

    def has_failed(self, device: int) -> bool:
        try:
            machine().default_stream(device).query()
        except (sim.DeviceError, DeviceUnavailableError):  # the machine may be another one's by now
            return True
        return False

    def device_count(self) -> int:
        return machine().device_count

    def create_stream(self, device: int, priority: int) -> StreamHandle:
        return machine().stream(device, priority).handle

    def stream_query(self, device: int, stream: StreamHandle) -> bool:
        return machine().stream_from_handle(stream).query()

    def stream_synchronize(self, device: int, stream: StreamHandle, timeout: float | None) -> bool:
        return machine().stream_from_handle(stream).synchronize(timeout)

    def create_event(self, device: int) -> EventHandle:
        return EventHandle(machine().event(device))

    def record(self, device: int, event: EventHandle, stream: StreamHandle) -> None:
        machine().stream_from_handle(stream).record(_event(event))

    def wait(self, device: int, stream: StreamHandle, event: EventHandle) -> None:
        machine().stream_from_handle(stream).wait(_event(event))

    def query(self, device: int, event: EventHandle) -> bool:
        return _event(event).query()

    def synchronize(self, device: int, event: EventHandle, timeout: float | None) -> bool:
        return _event(event).synchronize(timeout)


_RUNTIME: Final = SimRuntime()


def serve(type: str) -> runtimes.Runtime:
    """The runtime for ``sim``."""
    return _RUNTIME


# Pools hold handles of the machine that was active when they were filled.
sim.on_switch(runtimes.reset)
