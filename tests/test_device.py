"""What a device is called."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
import types
from typing import Any

import pytest

from gpufut import Device
from gpufut.device import parse_device, parse_devices


def test_devices_of_one_name_are_one_object():
    assert Device("sim", 1) is Device("sim", 1)
    assert Device("sim", 1) is not Device("sim", 0)
    assert Device("sim", 1) != Device("cuda", 1)


def test_threads_that_name_a_new_device_at_the_same_time_get_the_same_object():
    start = threading.Barrier(4)
    made: list[Device] = []

    def make() -> None:
        start.wait(20)
        made.extend(Device("racing", index) for index in range(200))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=make) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    finally:
        sys.setswitchinterval(interval)

    assert len(made) == 800
    assert len({id(device) for device in made}) == 200


def test_who_loses_the_race_for_a_new_name_gets_the_winners_object(monkeypatch):
    made: list[Device] = []

    class Known(dict[Any, Device]):
        looked_up = False

        def get(self, name: Any, default: Any = None) -> Any:
            found = super().get(name, default)
            if not self.looked_up:  # and right after the look another thread is quicker
                self.looked_up = True
                made.append(Device(*name))
            return found

    monkeypatch.setattr(Device, "_known", Known())

    assert Device("racing", 0) is made[0]


def test_a_copied_or_pickled_device_is_the_same_object():
    device = Device("cuda", 3)

    assert copy.copy(device) is device
    assert copy.deepcopy(device) is device
    assert pickle.loads(pickle.dumps(device)) is device


def test_a_device_is_written_as_its_frameworks_write_it():
    assert str(Device("cuda", 3)) == "cuda:3"
    assert repr(Device("cuda", 3)) == "Device('cuda', 3)"
    assert f"{Device('sim', 0)}" == "sim:0"


def test_a_device_does_not_change():
    device = Device("cuda", 3)

    with pytest.raises(AttributeError, match="a Device does not change"):
        device.index = 4
    with pytest.raises(AttributeError):
        device.note = 4
    assert device.index == 3


@pytest.mark.parametrize(
    ("type", "index", "error", "text"),
    [
        ("cpu", None, ValueError, "Expected devices to have indices, got cpu"),
        ("cpu", 0, ValueError, "Expected devices to have indices, got cpu"),
        ("cuda", None, ValueError, "Expected devices to have indices, got cuda.*'cuda:0'"),
        ("cuda", -1, ValueError, "a device index is 0 or more, got -1"),
        ("cuda", "0", TypeError, "a device index is an int, got '0'"),
        ("cuda", True, TypeError, "a device index is an int, got True"),
        ("cuda", 0.0, TypeError, "a device index is an int, got 0.0"),
        (0, 0, TypeError, "a device type is a string such as 'cuda', got 0"),
        (None, 0, TypeError, "a device type is a string such as 'cuda', got None"),
    ],
)
def test_a_device_that_makes_no_sense_is_refused_in_words(type, index, error, text):
    with pytest.raises(error, match=text):
        Device(type, index)


@pytest.mark.parametrize("text", ["", ":0"])
def test_a_device_without_a_type_is_refused(text):
    with pytest.raises((TypeError, ValueError), match="device"):
        parse_device(text, "cuda")


def test_devices_are_read_however_their_frameworks_write_them():
    torch_device = types.SimpleNamespace(type="cuda", index=2)
    cupy_device = type("Device", (), {"__module__": "cupy.cuda.device", "id": 2})()

    for device in (2, "cuda:2", "cuda:02", Device("cuda", 2), torch_device, cupy_device):
        assert parse_device(device, "cuda") is Device("cuda", 2)
    assert parse_device(2, "sim") is Device("sim", 2)


@pytest.mark.parametrize(
    "text", ["cuda:", "cuda:x", "cuda:-1", "cuda:1.0", "cuda:1:2", "cuda:\N{SUPERSCRIPT TWO}"]
)
def test_a_text_that_is_no_device_is_refused(text):
    with pytest.raises(ValueError, match="is no device: write a type and an index, as in 'cuda:0'"):
        parse_device(text, "cuda")


def test_a_framework_device_without_an_index_is_refused_as_in_torch():
    with pytest.raises(ValueError, match="Expected devices to have indices, got cpu"):
        parse_device(types.SimpleNamespace(type="cpu", index=None), "cuda")
    with pytest.raises(ValueError, match="Expected devices to have indices, got cuda"):
        parse_device(types.SimpleNamespace(type="cuda", index=None), "cuda")


@pytest.mark.parametrize("thing", [None, True, 1.5, b"cuda:0", object(), ["cuda:0"]])
def test_what_is_no_device_is_refused_with_what_would_be_one(thing):
    with pytest.raises(TypeError, match="a device is an index, a string such as 'cuda:0'"):
        parse_device(thing, "cuda")


def test_devices_are_read_in_order_without_duplicates():
    devices = parse_devices(iter(["sim:1", 0, Device("sim", 1)]), "sim")

    assert devices == (Device("sim", 1), Device("sim", 0))
    assert parse_devices([], "sim") == ()


def test_devices_of_several_types_are_refused_as_in_torch():
    with pytest.raises(ValueError, match=r"of the same type.*cuda:0 and sim:0"):
        parse_devices(["cuda:0", "sim:0"], "cuda")


@pytest.mark.parametrize("thing", ["cuda:0", 0, None, 1.5, Device("cuda", 0)])
def test_a_device_in_place_of_a_list_of_devices_is_refused(thing):
    with pytest.raises(TypeError, match=r"devices= takes a list of devices, as in \['cuda:0'\]"):
        parse_devices(thing, "cuda")
