"""A hand-off from a late producer to a consumer on another stream, tried for real.

Runs in a process of its own. This is the part that creates a context.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

from gpufut import Future, runtimes, stream
from gpufut.device import Device
from gpufut.doctor.benches import BENCHES, SIZE, VALUE, Bench, SimBench
from gpufut.doctor.facts import Check
from gpufut.doctor.judge import FAILED, OK
from gpufut.doctor.libraries import LIBRARIES, events_of
from gpufut.doctor.words import told
from gpufut.errors import DeviceUnavailableError
from gpufut.streams import Stream

__all__ = ["check", "hand_off"]

PATIENCE: Final = 30.0  # seconds for what should take milliseconds


@contextmanager
def _bench(device: Device, library: str) -> Iterator[Bench]:
    if device.type == "sim":
        from gpufut import sim

        with sim.Machine(devices=1) as machine:
            _check_exists(device)
            yield SimBench(getattr(machine, library))
    else:
        import_module(LIBRARIES[library].module)  # or there is no runtime yet
        _check_exists(device)
        yield BENCHES[library](device)


def _check_exists(device: Device) -> None:
    count = runtimes.get(device.type).device_count()
    if device.index >= count:
        raise DeviceUnavailableError(f"there is no {device}, only {count} of that type")


def check(name: str, library: str) -> Check:
    """Hand an array of *library* from stream to stream on a device. Never raises."""
    kind, _, index = name.partition(":")
    device = Device(kind, int(index))
    try:
        with _bench(device, library) as bench:
            hand_off(bench, device)  # loads kernels, which may wait for the device
            late = hand_off(bench, device)
    except Exception as error:
        return Check(name, library, FAILED, told(error))
    # The simulated machine reports a missing wait itself, however late the producer is.
    return Check(name, library, OK, events=events_of(kind), late=None if kind == "sim" else late)


def hand_off(bench: Bench, device: Device) -> bool:
    """Produce on one stream, consume on another and on one that gpufut lends.

    Returns whether the producer was still running when both consumers had been launched.

    Raises:
        ArithmeticError: A consumer has read something else than the producer wrote.
        TimeoutError: The hand-off did not come about.
    """
    runtime = runtimes.get(device.type)
    producer, consumer = (Stream(device, runtime.create_stream(device.index, 0)) for _ in range(2))
    array, copied, lent = bench.zeros(), bench.zeros(), bench.zeros()
    future: Future[dict[str, Any]] = Future()

    def copy_on_lent_stream(done: Future[dict[str, Any]]) -> Any:
        bench.copy(done.value()["array"], lent)
        return lent

    with stream(producer):
        bench.delay()
        bench.fill(array)
        future.set_result({"array": array})
    child = future.then(copy_on_lent_stream)
    with stream(consumer):
        bench.copy(future.wait(PATIENCE)["array"], copied)
        late = not future.query()
        for who, got in (
            ("a consumer on its own stream", bench.read(copied)),
            ("a callback on a stream of gpufut's", bench.read(child.wait(PATIENCE))),
        ):
            wrong = int((got != VALUE).sum())
            if wrong:
                raise ArithmeticError(f"{who} read {wrong} of {SIZE} bytes wrong")
    future.synchronize(PATIENCE)
    if not future.query():
        raise TimeoutError("the device has not finished, although synchronize() returned")
    return late
