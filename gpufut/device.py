"""What a device is called: a type and an index, ``cuda:0``. Looks at no hardware."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Self, cast

__all__ = ["Device", "cuda_device", "parse_device", "parse_devices"]


class Device:
    """One accelerator, by type and index.

    Two devices of the same type and index are the same object, so that comparing and hashing them
    costs no Python call: they are keys on the hot path.

    Args:
        type: The kind of device: ``"cuda"`` (ROCm too, as in torch), ``"xpu"``, ``"sim"``, ...
        index: Its number among the devices of that type, from 0.

    Raises:
        ValueError: The index is missing or negative, or the type is empty or ``"cpu"``.

    >>> Device("sim", 1)
    Device('sim', 1)
    >>> str(Device("sim", 1)), Device("sim", 1) is Device("sim", 1)
    ('sim:1', True)
    """

    __slots__ = ("__weakref__", "index", "type")

    type: str
    index: int
    _known: dict[tuple[Any, ...], Any] = {}  # noqa: RUF012  # a registry, shared on purpose

    def __new__(cls, type: str, index: int | None = None) -> Self:
        """The device of that name; see the class."""
        if not isinstance(type, str) or not type:
            raise TypeError(f"a device type is a string such as 'cuda', got {type!r}")
        if index is None or type == "cpu":
            hint = f"name one, as in '{type}:0'"
            if ":" in type:
                hint = "type and index are two arguments, as in Device('cuda', 0)"
            raise ValueError(
                f"Expected devices to have indices, got {type}"
                + ("" if type == "cpu" else f": {hint}")
            )
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"a device index is an int, got {index!r}")
        if index < 0:
            raise ValueError(f"a device index is 0 or more, got {index}")
        known = cls._known.get((type, index))
        if known is None:
            device = object.__new__(cls)
            object.__setattr__(device, "type", type)
            object.__setattr__(device, "index", index)
            # Whoever loses a race for a new name gets the winner's object.
            known = cls._known.setdefault((type, index), device)
        return cast(Self, known)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Device does not change; cannot set {name!r}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Device, (self.type, self.index)

    def __str__(self) -> str:
        return f"{self.type}:{self.index}"

    def __repr__(self) -> str:
        return f"Device({self.type!r}, {self.index})"


@functools.cache
def cuda_device(index: int) -> Device:
    """``Device("cuda", index)``, at the price of a look: for adapters, which ask for each array."""
    return Device("cuda", index)


def parse_device(device: object, default_type: str) -> Device:
    """Read a device however its framework writes it.

    Args:
        device: A `Device`, an index, a string such as ``"cuda:1"``, a `torch.device` or a
            `cupy.cuda.Device`.
        default_type: The type that a bare index belongs to.

    Raises:
        ValueError: No index, or a text that is no device.
        TypeError: Something else altogether.

    >>> parse_device("sim:1", "cuda"), parse_device(0, "cuda")
    (Device('sim', 1), Device('cuda', 0))
    >>> parse_device("cpu", "cuda")
    Traceback (most recent call last):
    ValueError: Expected devices to have indices, got cpu
    """
    if isinstance(device, Device):
        return device
    if isinstance(device, int) and not isinstance(device, bool):
        return Device(default_type, device)
    if isinstance(device, str):
        kind, colon, index = device.partition(":")
        if colon and not (index.isascii() and index.isdigit()):
            raise ValueError(f"{device!r} is no device: write a type and an index, as in 'cuda:0'")
        return Device(kind, int(index)) if colon else Device(kind)
    name = getattr(device, "type", None)
    if isinstance(name, str):  # torch.device
        return Device(name, getattr(device, "index", None))
    number = getattr(device, "id", None)
    if type(device).__module__.partition(".")[0] == "cupy" and isinstance(number, int):
        return Device("cuda", number)
    raise TypeError(
        "a device is an index, a string such as 'cuda:0', a torch.device, a cupy.cuda.Device or a "
        f"gpufut.Device; got {device!r}"
    )


def parse_devices(devices: object, default_type: str) -> tuple[Device, ...]:
    """Read the `devices=` of a future: a list of devices, all of one type.

    Raises:
        ValueError: A device without an index, or devices of several types.
        TypeError: Not a list, or something in it is no device.
    """
    if isinstance(devices, str) or not isinstance(devices, Iterable):
        raise TypeError(f"devices= takes a list of devices, as in ['cuda:0']; got {devices!r}")
    parsed = tuple(dict.fromkeys(parse_device(device, default_type) for device in devices))
    for device in parsed:
        if device.type != parsed[0].type:
            raise ValueError(
                "Expected all devices to be of the same type, but got a mismatch between "
                f"{parsed[0]} and {device}: use one future for each type"
            )
    return parsed
