"""torch's adapter, without an accelerator: torch's own tensors, and stand-ins for what it calls.

A wrapper class gives tensors that say they are on `cuda:0`; tensors on `meta` are ordinary ones for
which no work is done. What is private to torch's CUDA part is replaced function by function.
"""

from __future__ import annotations

import io
import warnings
import weakref
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")

import torch

from gpufut import Future, arrays, driver, runtimes, sim
from gpufut.arrays import find
from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import ArrayType, Framework
from gpufut.frameworks import torch as adapter

CUDA = 1  # torch's numbers for types of devices
XPU = 12
NPU = torch.device("privateuseone")  # as devices out of tree are called before they have a name


# -- stand-ins -------------------------------------------------------------------------------------


class OnDevice(torch.Tensor):  # type: ignore[misc]
    """A tensor that says it is on a device, and notes which operators it is asked for."""

    asked: list[tuple[Any, tuple[Any, ...]]]
    refuses: bool

    @staticmethod
    def __new__(cls, device: str = "cuda:0", *, refuses: bool = False) -> Any:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls, (4,), dtype=torch.float32, device=torch.device(device)
        )
        tensor.asked = []
        tensor.refuses = refuses
        return tensor

    def __init__(self, device: str = "cuda:0", *, refuses: bool = False) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:  # for Parameter()
            return OnDevice(str(args[0].device))
        args[0].asked.append((func, args[1:]))
        if args[0].refuses:
            raise NotImplementedError(func)
        return None

    def __repr__(self, **_: Any) -> str:
        return f"<on {self.device}>"

    @property
    def streams(self) -> list[tuple[int, int, int]]:
        """What it was told by `record_stream`."""
        told = [args[0] for func, args in self.asked if "record_stream" in str(func)]
        return [(each.stream_id, each.device_index, each.device_type) for each in told]


class Bundle(torch.Tensor):  # type: ignore[misc]
    """A wrapper that says what it is made of, as DTensor and torchao's do."""

    @staticmethod
    def __new__(cls, **parts: Any) -> Any:
        bundle = torch.Tensor._make_wrapper_subclass(cls, (4,), device="cuda:0")
        bundle.__dict__.update(parts)
        return bundle

    def __init__(self, **parts: Any) -> None:
        pass

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return sorted(self.__dict__), None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(func)


class CudaPart:
    """torch's private functions for CUDA: two devices or more, one thread."""

    def __init__(self) -> None:
        self.initialized = True
        self.available = True
        self.device = 0
        self.streams: dict[int, int] = {}  # device -> stream id
        self.contexts = {0, 1, 2}
        self.fails_on: int | None = None  # device on which no stream can be set
        self.calls: list[str] = []

    def is_initialized(self) -> bool:
        return self.initialized

    def init(self) -> None:
        self.initialized = True
        self.calls.append("init")

    def get_raw(self, device: int) -> int:
        assert self.initialized, "it would make a context"
        return self.streams.get(device, 0)

    def get_stream(self, device: int) -> tuple[int, int, int]:
        return self.streams.get(device, 0), device, CUDA

    def set_stream(self, *, stream_id: int, device_index: int, device_type: int) -> None:
        assert stream_id != 1, "1 is no valid stream id"
        assert device_type == CUDA
        if self.device != device_index:
            self.set_device(device_index)
        if device_index == self.fails_on:
            raise RuntimeError("CUDA error: out of memory")
        self.streams[device_index] = stream_id

    def set_device(self, device: int) -> None:
        self.device = device
        self.contexts.add(device)

    def maybe_exchange_device(self, device: int) -> int:
        before, self.device = self.device, device
        self.calls.append(f"remember {device}")
        return before

    def on(self, device: int, function: Callable[..., Any], *arguments: Any) -> Any:
        before, self.device = self.device, device
        try:
            return function(*arguments)
        finally:
            self.device = before


class Elsewhere:
    """torch.accelerator: three devices of type xpu, one thread."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, int] = {}
        self.reserved: dict[int, int] = {}

    def current_accelerator(self, check_available: bool = False) -> Any:
        return torch.device("xpu")

    def device_count(self) -> int:
        return 3

    def current_device_index(self) -> int:
        return self.device

    def set_device_index(self, device: int) -> None:
        self.device = device

    def current_stream(self, device: int) -> Any:
        return stream(self.streams.get(device, 0), device, XPU)

    def set_stream(self, stream: Any) -> None:
        assert stream.device_type == XPU
        self.device = stream.device_index
        self.streams[stream.device_index] = stream.stream_id

    def memory_reserved(self, device: int) -> int:
        return self.reserved.get(device, 0)


def stream(stream_id: int, device: int = 0, kind: int = CUDA) -> Any:
    return torch.Stream(stream_id=stream_id, device_index=device, device_type=kind)


@pytest.fixture(autouse=True)
def unlearnt() -> Iterator[None]:
    """What was learnt of types in one build of torch does not hold in another."""
    arrays._forget_types()
    yield
    arrays._forget_types()


@pytest.fixture
def built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of torch for the CPU alone."""
    monkeypatch.delattr(torch._C, "_cuda_setStream", raising=False)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)


@pytest.fixture
def part(monkeypatch: pytest.MonkeyPatch) -> CudaPart:
    """A build of torch with CUDA, initialised."""
    part = CudaPart()
    private = {
        "_cuda_getCurrentRawStream": part.get_raw,
        "_cuda_getCurrentStream": part.get_stream,
        "_cuda_setStream": part.set_stream,
        "_cuda_getDevice": lambda: part.device,
        "_cuda_setDevice": part.set_device,
        "_cuda_maybeExchangeDevice": part.maybe_exchange_device,
    }
    for name, function in private.items():
        monkeypatch.setattr(torch._C, name, function, raising=False)
    for name in ("_has_Standard_Deleter", "_cuda_getAllocatorBackend"):
        monkeypatch.delattr(torch._C, name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", part.is_initialized)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: part.available)
    monkeypatch.setattr(torch.cuda, "init", part.init)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(driver, "has_context", lambda device: device in part.contexts)
    monkeypatch.setattr(driver, "on", part.on)
    return part


@pytest.fixture
def cuda(part: CudaPart) -> Any:
    """torch on CUDA; a new one, which has not asked yet which allocator there is."""
    return adapter.CudaTorch()


@pytest.fixture
def elsewhere(built_without: None, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    """A build of torch for xpu."""
    accelerator = Elsewhere()
    for name in (each for each in dir(Elsewhere) if not each.startswith("_")):
        monkeypatch.setattr(torch.accelerator, name, getattr(accelerator, name), raising=False)
    monkeypatch.setattr(adapter, "_current_stream", accelerator.current_stream)
    monkeypatch.setattr(adapter, "_set_current_stream", accelerator.set_stream)
    monkeypatch.setattr(adapter, "_current_device", accelerator.current_device_index)
    return accelerator


@pytest.fixture
def xpu(elsewhere: Elsewhere) -> Any:
    return adapter.AcceleratorTorch("xpu")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The ordinary tensors on which `record_stream` was called, for an allocator that hears it."""
    recorded: list[Any] = []
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda tensor, _: recorded.append(tensor), raising=False
    )
    return recorded


def array_type(kind: type = torch.Tensor) -> ArrayType:
    found = adapter.ADAPTER.array_type(kind)
    assert found is not None
    return found


def places(value: object) -> list[tuple[str, Device | None, Any]]:
    return [(framework.name, device, array) for framework, device, array in find(value)]


# -- what there is ---------------------------------------------------------------------------------


def kinds() -> list[str]:
    fresh = adapter.TorchAdapter()
    found = [each for kind in ("cuda", "xpu", NPU.type, "sim") for each in fresh.frameworks(kind)]
    return [framework.device_type for framework in found]


def test_a_build_for_the_cpu_has_no_framework(built_without, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asks for a driver"))

    assert kinds() == []


def test_a_build_with_cuda_that_cannot_use_the_driver_is_left_out_and_asked_once(part):
    part.available = False
    fresh = adapter.TorchAdapter()
    assert list(fresh.frameworks("cuda")) == []

    part.available = True  # which torch would not notice either
    assert list(fresh.frameworks("cuda")) == []


def test_a_build_with_cuda_that_is_in_use_is_not_asked_again(part):
    fresh = adapter.TorchAdapter()
    assert list(fresh.frameworks("cuda")) == [adapter._CUDA]

    part.available = False
    assert list(fresh.frameworks("cuda")) == [adapter._CUDA]


def test_a_warning_that_says_why_the_driver_cannot_be_used_does_no_harm(part, monkeypatch):
    def is_available() -> bool:
        warnings.warn("CUDA initialization: the driver is too old", stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)

    assert kinds() == []  # although warnings are errors here


def test_for_another_type_of_device_cuda_is_not_asked(part, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asks for a driver"))

    assert list(adapter.TorchAdapter().frameworks("sim")) == []


def test_a_build_with_cuda_has_one_and_does_not_look_for_another_accelerator(part, monkeypatch):
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: pytest.fail("wakes the driver")
    )

    assert kinds() == ["cuda"]


def test_torchs_accelerator_is_found_whatever_it_is_called(elsewhere):
    assert kinds() == ["xpu"]
    first, again = (adapter.ADAPTER.frameworks("xpu")[0] for _ in range(2))
    assert first is again


def test_a_back_end_out_of_tree_may_stand_beside_cuda(part, monkeypatch):
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "npu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: NPU)

    assert kinds() == ["cuda", NPU.type]


def test_a_back_end_out_of_tree_that_is_no_accelerator_does_not_hide_cuda(part, monkeypatch):
    monkeypatch.setattr(torch._C, "_get_privateuse1_backend_name", lambda: "npu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))

    assert kinds() == ["cuda"]


def test_the_frameworks_keep_the_protocol(cuda, xpu):
    for framework in (cuda, xpu):
        checked: Framework = framework  # mypy
        assert not checked.works_on_any_stream
        assert checked.exported_stream(torch.zeros(1)) is None
    assert adapter.ADAPTER.stream_types() == ()


# -- finding tensors -------------------------------------------------------------------------------


def test_without_an_accelerator_the_look_at_a_tensor_stays_in_c(built_without):
    assert type(array_type().on_host) is attrgetter
    assert array_type().on_host(torch.zeros(1))


@pytest.mark.parametrize("kind", [int, torch.nn.Module, torch.Size, torch.dtype])
def test_other_types_of_torch_are_no_arrays(kind):
    assert adapter.ADAPTER.array_type(kind) is None


def test_pinned_memory_is_recognised_only_once_cuda_is_initialised(part, monkeypatch):
    pinned, ordinary = torch.zeros(1), torch.zeros(1)
    asked: list[Any] = []

    def is_pinned(tensor: Any) -> bool:
        asked.append(tensor)
        return tensor is pinned

    monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)
    on_host = array_type().on_host

    part.initialized = False
    assert on_host(pinned)
    assert asked == []
    part.initialized = True
    assert not on_host(pinned)
    assert on_host(ordinary)
    assert array_type().locate(pinned) == (adapter._CUDA, None)


def test_pinned_memory_of_another_accelerator_is_recognised(elsewhere, monkeypatch):
    pinned = torch.zeros(1)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor is pinned)

    assert not array_type().on_host(pinned)
    assert array_type().on_host(torch.zeros(1))
    place = array_type().locate(pinned)
    assert place is not None
    assert (place[0].device_type, place[1]) == ("xpu", None)


def test_an_accelerator_that_comes_after_the_first_tensors_has_pinned_memory_too(
    built_without, monkeypatch
):
    pinned = torch.zeros(1)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: tensor is pinned)
    assert places(pinned) == []  # what tensors are is learnt

    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    for known in ("_accelerators", "_PLACES"):
        monkeypatch.setattr(adapter, known, {})
    assert places(OnDevice("xpu:0"))[0][1] == Device("xpu", 0)

    assert places(pinned) == [("torch", None, pinned)]


def test_a_tensor_on_the_host_is_a_value_without_arrays_however_it_is_handed_on():
    tensor = torch.zeros(3)

    for _ in range(2):  # when the type is met, and when it is known
        assert find(tensor) == find([tensor]) == []
        future = Future[Any]()
        future.set_result(tensor)
        assert future.wait() is tensor


@pytest.mark.parametrize("build", ["part", "elsewhere"])
def test_a_tensor_that_cannot_be_asked_whether_it_is_pinned_is_on_the_host(build, request):
    request.getfixturevalue(build)
    opaque = torch.zeros(3, 3).to_mkldnn()
    with pytest.raises(NotImplementedError):
        opaque.is_pinned()

    assert array_type().on_host(opaque)


@pytest.mark.parametrize("build", ["part", "elsewhere"])
def test_a_tensor_wrapped_by_vmap_is_pinned_if_what_it_wraps_is(build, request, monkeypatch):
    request.getfixturevalue(build)
    answers: list[object] = []
    ask = torch.Tensor.is_pinned

    def is_pinned(tensor: Any) -> bool:
        ask(tensor)  # raises for what is wrapped
        return True

    def look(tensor: Any) -> Any:
        answers.append(array_type().on_host(tensor))
        return tensor

    torch.vmap(look)(torch.zeros(2, 3))
    monkeypatch.setattr(torch.Tensor, "is_pinned", is_pinned)
    torch.vmap(look)(torch.zeros(2, 3))

    assert answers == [True, False]


def test_a_tensor_is_found_on_the_device_that_it_names(part):
    first, second = OnDevice("cuda:0"), OnDevice("cuda:1")

    assert places([first, (second, first)]) == [
        ("torch", Device("cuda", 1), second),
        ("torch", Device("cuda", 0), first),
    ]


def test_a_tensor_on_another_accelerator_is_found_there(elsewhere):
    tensor = OnDevice("xpu:2")

    assert places(tensor) == [("torch", Device("xpu", 2), tensor)]
    assert array_type().locate(tensor) is array_type().locate(OnDevice("xpu:2"))


def test_the_only_device_of_a_type_may_go_without_an_index(elsewhere, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("hpu"))
    tensor = type("Tensor", (), {"device": torch.device("hpu"), "is_meta": False})()
    tensor.is_cpu = tensor.is_cuda = False

    place = array_type().locate(tensor)

    assert place is not None
    assert place[1] == Device("hpu", 0)


@pytest.mark.parametrize(
    ("build", "known"), [("built_without", "nothing"), ("part", "nothing"), ("elsewhere", "'xpu'")]
)
def test_a_device_that_torch_orders_in_no_known_way_is_refused(build, known, request):
    request.getfixturevalue(build)

    with pytest.raises(DeviceUnavailableError, match=rf"on hpu:0.*type 'hpu'.*which is {known}"):
        array_type().locate(OnDevice("hpu:0"))


def test_shapes_without_data_have_nothing_to_do_with_a_device(part):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        fake = torch.zeros(3, device="cuda:0")

    assert type(fake) is FakeTensor
    assert fake.device.type == "cuda"
    assert places([fake, torch.zeros(3, device="meta")]) == []
    assert array_type(FakeTensor).locate(fake) is None


def test_tensors_of_any_make_are_looked_at_without_an_error(part):
    def sparse(kind: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the layout is new
            return getattr(torch.eye(4), f"to_sparse{kind}")

    class Named(torch.Tensor):  # type: ignore[misc]
        """What a user derives for methods of his own."""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested and quantised ones may change
        value = [
            sparse("")(), sparse("_csr")(), sparse("_csc")(), sparse("_bsr")((2, 2)),
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
            torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
            torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            torch.zeros(3, requires_grad=True) * 2, torch.zeros(3).as_subclass(Named),
            torch.zeros(3, 3).to_mkldnn(), torch.zeros(2, dtype=torch.cfloat).conj(),
        ]  # fmt: skip

    assert places(value) == []
    torch.vmap(lambda row: (places(row), row)[1])(torch.zeros(2, 3))
    torch.func.grad(lambda row: (places(row), row.sum())[1])(torch.zeros(3))


def test_the_tensors_of_a_module_are_found_once_each(part):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for module in model:
        for name in list(module._parameters):
            module._parameters[name] = torch.nn.Parameter(OnDevice())
        for name in list(module._buffers):
            module._buffers[name] = OnDevice()
    model.add_module("tied", model[0])
    expected = [*model.parameters(), *model.buffers()]
    assert len(expected) == 7

    found = [array for _, _, array in find(model)]

    assert sorted(map(id, found)) == sorted(map(id, expected))


def scripted(model: Any) -> Any:
    """A module of TorchScript, which has no class of tensor but torch's own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is on its way out
        return torch.jit.script(model)


def traced(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(model, torch.zeros(3, 2))


def saved(model: Any) -> Any:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(scripted(model), file)
        file.seek(0)
        return torch.jit.load(file)


@pytest.mark.parametrize("make", [scripted, traced, saved])
def test_the_tensors_of_a_module_of_torchscript_are_found_once_each(part, monkeypatch, make):
    model = make(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)))
    expected = [*model.parameters(), *model.buffers()]
    assert len(expected) == 7
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: True)  # so that they are found

    found = [array for _, _, array in find([model, {"again": model}])]

    assert sorted(map(id, found)) == sorted(map(id, expected))


def test_the_state_of_an_optimizer_is_found(part):
    weight, moment = torch.nn.Parameter(OnDevice()), OnDevice()
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.state[weight]["momentum"] = moment

    found = [array for _, _, array in find(optimizer)]

    assert sorted(map(id, found)) == sorted(map(id, (weight, moment)))


def test_the_tensors_of_a_packed_sequence_are_found(part):
    tensors = [OnDevice(), OnDevice(), OnDevice()]
    packed = torch.nn.utils.rnn.PackedSequence(
        tensors[0], torch.ones(1, dtype=torch.int64), tensors[1], tensors[2]
    )

    found = [array for _, _, array in find(packed)]

    assert sorted(map(id, found)) == sorted(map(id, tensors))


# -- memory that torch's allocator owns ------------------------------------------------------------


def test_the_allocator_is_told_of_the_consumers_stream(cuda):
    tensor = OnDevice()

    assert cuda.keep_memory(tensor, 0, 0x7F00) is None
    assert cuda.keep_memory(tensor, 1, 0x7F10) is None

    assert tensor.streams == [(0x7F00, 0, CUDA), (0x7F10, 1, CUDA)]


def test_memory_read_on_a_threads_own_default_stream_is_kept_for_the_legacy_one(cuda):
    # Whichever thread frees it would take the handle for its own stream's. Torch calls legacy 0.
    tensor = OnDevice()

    cuda.keep_memory(tensor, 0, 1)
    cuda.keep_memory(tensor, 0, 2)

    assert tensor.streams == [(0, 0, CUDA), (0, 0, CUDA)]


def test_a_stream_object_is_made_once_and_forgotten_when_handles_become_meaningless(
    cuda, monkeypatch
):
    made: list[tuple[int, int]] = []

    def make(*, stream_id: int, device_index: int, device_type: int) -> Any:
        made.append((device_index, stream_id))
        return real(stream_id=stream_id, device_index=device_index, device_type=device_type)

    real = torch.Stream
    monkeypatch.setattr(torch, "Stream", make)
    for _ in range(2):
        cuda.keep_memory(OnDevice(), 0, 0x7F00)
    assert made == [(0, 0x7F00)]

    runtimes.reset()
    cuda.keep_memory(OnDevice(), 0, 0x7F00)
    assert made == [(0, 0x7F00)] * 2


def test_stream_objects_are_not_kept_without_limit(cuda, monkeypatch):
    monkeypatch.setattr(adapter, "_MOST_STREAMS", 4)
    for handle in range(0x1000, 0x1100, 16):
        cuda.keep_memory(OnDevice(), 0, handle)

    assert len(cuda._streams) <= 4


def test_another_accelerators_stream_goes_by_torchs_id(xpu, elsewhere):
    tensor = OnDevice("xpu:1")

    assert xpu.keep_memory(tensor, 1, 33) is None

    assert tensor.streams == [(33, 1, XPU)]


def test_an_ordinary_tensor_is_told_itself(cuda, told):
    tensor = torch.empty(4, device="meta")

    assert cuda.keep_memory(tensor, 0, 0x7F00) is None
    assert told == [tensor]


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr", "sparse_csc"])
def test_of_a_sparse_tensor_the_parts_are_told(cuda, told, monkeypatch, layout):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the layout is new
        tensor = torch.empty((4, 4), layout=getattr(torch, layout), device="meta")

    assert cuda.keep_memory(tensor, 0, 0x7F00) is None
    assert len(told) == (2 if layout == "sparse_coo" else 3)
    assert all(each.layout is torch.strided for each in told)


def test_of_a_jagged_tensor_the_parts_are_told(cuda, told):
    jagged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged)
    jagged = jagged.to("meta")
    told.clear()

    assert cuda.keep_memory(jagged, 0, 0x7F00) is None
    assert any(each is jagged._values for each in told)
    assert any(each is jagged._offsets for each in told)


def test_of_a_wrapper_the_parts_are_told_also_when_they_wrap_in_turn(cuda):
    first, second, third = OnDevice(), OnDevice(), OnDevice()

    assert cuda.keep_memory(Bundle(a=first, b=Bundle(c=second, d=third)), 0, 0x7F00) is None

    assert all(each.streams == [(0x7F00, 0, CUDA)] for each in (first, second, third))


def test_what_functorch_wraps_is_told(cuda, told):
    tensor = torch.empty(2, 4, device="meta")

    torch.vmap(lambda row: (cuda.keep_memory(row, 0, 0x7F00), row)[1])(tensor)

    assert told == [tensor]


@pytest.mark.parametrize("leaf", [torch.nn.Parameter, torch.Tensor.requires_grad_])
def test_the_gradient_of_a_leaf_is_kept_with_it(cuda, told, leaf):
    weight = leaf(torch.empty(4, device="meta"))
    weight.grad = torch.empty(4, device="meta")

    assert cuda.keep_memory(weight, 0, 0x7F00) is None

    assert [id(each) for each in told] == [id(weight), id(weight.grad)]


def test_a_tensor_inside_a_graph_is_not_asked_for_its_gradient(cuda, told):
    inner = torch.empty(4, device="meta", requires_grad=True) * 2

    cuda.keep_memory(inner, 0, 0x7F00)  # a warning would be an error here

    assert [id(each) for each in told] == [id(inner)]


# -- memory that it does not own -------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["native", "cudaMallocAsync", "hipMallocAsync"])
def test_torchs_own_allocators_hear_of_streams(cuda, told, monkeypatch, backend):
    monkeypatch.setattr(torch._C, "_cuda_getAllocatorBackend", lambda: backend, raising=False)

    assert cuda.keep_memory(torch.empty(4, device="meta"), 0, 0x7F00) is None
    assert len(told) == 1


def test_what_an_allocator_says_of_streams_that_it_knows_does_not_come_up(cuda, monkeypatch):
    told: list[Any] = []

    def record_stream(tensor: Any, _: Any) -> None:  # as on the stream of the allocation
        told.append(tensor)
        warnings.warn(
            "Called record_stream on tensor whose original creation stream matches the recorded "
            "stream. This is unnecessary and has no effect.",
            UserWarning,
            stacklevel=1,
        )

    monkeypatch.setattr(
        torch._C, "_cuda_getAllocatorBackend", lambda: "cudaMallocAsync", raising=False
    )
    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream, raising=False)
    tensor = torch.empty(4, device="meta")

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert cuda.keep_memory(tensor, 0, 0x7F00) is None

    assert told == [tensor]
    assert warned == []


def test_memory_of_a_pluggable_allocator_is_held(cuda, told, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getAllocatorBackend", lambda: "pluggable", raising=False)
    tensor = torch.empty(4, device="meta")

    owner = cuda.keep_memory(tensor, 0, 0x7F00)

    assert owner.object is tensor.untyped_storage()
    assert told == []


def test_a_class_of_its_own_on_a_pluggable_allocator_is_held_itself(cuda, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getAllocatorBackend", lambda: "pluggable", raising=False)
    tensor = OnDevice()

    assert cuda.keep_memory(tensor, 0, 0x7F00).object is tensor
    assert tensor.streams == []


def test_memory_that_has_left_the_allocator_is_held_by_the_allocators_own_test(
    cuda, told, monkeypatch
):
    kept, sent = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    monkeypatch.setattr(
        torch._C,
        "_has_Standard_Deleter",
        lambda address: address == kept.untyped_storage()._cdata,
        raising=False,
    )

    assert cuda.keep_memory(kept, 0, 0x7F00) is None
    assert cuda.keep_memory(sent, 0, 0x7F00).object is sent.untyped_storage()
    assert told == [kept]


@pytest.mark.parametrize("framework", ["cuda", "xpu"])
def test_imported_memory_is_held(framework, request, told, monkeypatch):
    torch_on = request.getfixturevalue(framework)
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    imported = torch.from_numpy(np.zeros(4, np.float32))  # cannot be resized, as from DLPack

    owner = torch_on.keep_memory(imported, 0, 0x7F00)

    assert owner.object is imported.untyped_storage()
    assert told == []


def test_pinned_memory_is_held_whatever_the_stream(cuda, xpu, told):
    pinned = torch.zeros(4)  # in host memory: it is located by pinnedness, which is not asked again

    for framework in (cuda, xpu):
        for handle in (1, 0x7F00):
            assert framework.keep_memory(pinned, 0, handle).object is pinned.untyped_storage()
    assert told == []


def test_a_quantised_tensor_which_no_allocator_is_told_of_is_held(cuda, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that quantised tensors may change
        tensor = torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8)

    assert cuda.keep_memory(tensor, 0, 0x7F00).object is tensor.untyped_storage()


@pytest.fixture
def nested() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nested tensors may change
        return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def test_of_a_strided_nested_tensor_the_buffer_is_told(cuda, nested, monkeypatch):
    told: list[Any] = []

    def record_stream(tensor: Any, _: Any) -> None:
        if tensor.is_nested:
            raise NotImplementedError("aten::record_stream, NestedTensorCUDA")
        told.append(tensor.untyped_storage())

    monkeypatch.setattr(torch.Tensor, "is_cpu", False, raising=False)
    monkeypatch.setattr(torch.Tensor, "record_stream", record_stream, raising=False)

    assert cuda.keep_memory(nested, 0, 0x7F00) is None
    assert told == [nested.untyped_storage()]


def test_a_pinned_nested_tensor_is_held_by_its_buffer(cuda, nested):
    assert cuda.keep_memory(nested, 0, 0x7F00).object is nested.values().untyped_storage()


def test_a_class_of_its_own_over_imported_memory_is_held_by_the_storage(cuda):
    class Imported(OnDevice):
        def untyped_storage(self) -> Any:
            return memory.untyped_storage()

    memory = torch.from_numpy(np.zeros(4, np.float32))
    tensor = Imported()

    assert cuda.keep_memory(tensor, 0, 0x7F00).object is memory.untyped_storage()
    assert tensor.streams == []


def test_a_class_that_cannot_be_told_is_held_itself(cuda):
    tensor = OnDevice(refuses=True)

    owner = cuda.keep_memory(tensor, 0, 0x7F00)

    assert tensor.streams == [(0x7F00, 0, CUDA)]
    assert owner.object is tensor
    assert owner.is_shared is None


def test_several_memories_of_one_tensor_are_held_together(cuda, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getAllocatorBackend", lambda: "pluggable", raising=False)
    first, second = torch.empty(4, device="meta"), torch.empty(4, device="meta")

    owner = cuda.keep_memory(Bundle(a=first, b=second), 0, 0x7F00)

    assert owner.object == (first.untyped_storage(), second.untyped_storage())
    assert owner.is_shared(owner.object)
    del first
    assert owner.is_shared(owner.object)
    del second
    assert not owner.is_shared(owner.object)


@pytest.mark.parametrize(
    "share",
    [
        lambda tensor: tensor[1:],
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.reshape(2, 2),
        lambda tensor: tensor.numpy(),
        torch.from_dlpack,
        lambda tensor: (tensor.requires_grad_() * tensor).grad_fn,  # what the graph saved
        lambda tensor: torch.zeros(0).set_(tensor.untyped_storage()),
    ],
    ids=["slice", "detach", "reshape", "numpy", "dlpack", "graph", "set"],
)
def test_memory_is_shared_as_long_as_any_tensor_refers_to_it(cuda, share: Callable[[Any], Any]):
    tensor = torch.ones(4)
    owner = cuda.keep_memory(tensor, 0, 0x7F00)
    other = share(tensor)

    assert owner.is_shared(owner.object)
    del tensor
    assert owner.is_shared(owner.object)
    del other
    assert not owner.is_shared(owner.object)


def test_all_tensors_that_share_memory_have_one_owner(cuda):
    tensor = torch.zeros(4)
    owners = [cuda.keep_memory(each, 0, 2) for each in (tensor, tensor[1:], tensor.detach())]

    assert all(owner.object is owners[0].object for owner in owners)
    assert all(owner.is_shared is owners[0].is_shared for owner in owners)


# -- current streams on CUDA -----------------------------------------------------------------------


def test_the_current_stream_is_the_raw_handle(cuda, part):
    part.streams = {0: 0x7F00}

    assert [cuda.current_stream(device) for device in (0, 1)] == [0x7F00, 1]


def test_before_cuda_is_initialised_the_current_stream_is_the_legacy_one(cuda, part):
    part.initialized = False

    assert cuda.current_stream(0) == 1
    assert part.calls == []


def test_in_a_forked_child_torch_is_not_asked_until_it_is_initialised_again(cuda, part):
    part.streams = {0: 0x7F00}
    assert cuda.current_stream(0) == 0x7F00

    part.initialized = False
    runtimes.reset()  # as a fork does

    assert cuda.current_stream(0) == 1


@pytest.mark.parametrize("current", [0, 1, 2])
@pytest.mark.parametrize("devices", [{0: 0x70}, {1: 0x71}, {0: 0x70, 1: 0x71}, {2: 1, 0: 2, 1: 3}])
def test_streams_are_set_on_all_devices_and_the_current_device_stays(cuda, part, current, devices):
    before = {0: 5, 1: 0, 2: 0x7F}
    part.device, part.streams = current, dict(before)

    saved = cuda.save_streams(list(devices))
    cuda.set_streams(devices, saved)
    torchs = {device: 0 if handle == 1 else handle for device, handle in devices.items()}
    assert part.streams == before | torchs
    assert part.device == current

    cuda.restore_streams(saved)
    assert (part.streams, part.device) == (before, current)


def test_what_the_users_code_changed_meanwhile_is_undone_too(cuda, part):
    part.streams = {0: 5, 1: 7}
    saved = cuda.save_streams([0, 1])
    cuda.set_streams({0: 0x70, 1: 0x71}, saved)
    part.set_stream(stream_id=0x99, device_index=1, device_type=CUDA)
    part.device = 2

    for _ in range(2):  # the second time does no harm
        cuda.restore_streams(saved)
        assert (part.streams, part.device) == ({0: 5, 1: 7}, 0)


def test_half_a_change_is_undone(cuda, part):
    part.streams = {0: 5, 1: 7, 2: 9}
    saved = cuda.save_streams([1, 2])
    part.fails_on = 2
    with pytest.raises(RuntimeError, match="out of memory"):
        cuda.set_streams({1: 0x71, 2: 0x72}, saved)
    assert part.streams[1] == 0x71

    part.fails_on = None
    cuda.restore_streams(saved)
    assert (part.streams, part.device) == ({0: 5, 1: 7, 2: 9}, 0)


def test_to_set_a_stream_makes_no_context_on_the_current_device(cuda, part):
    part.contexts = {1}

    saved = cuda.save_streams([1])
    cuda.set_streams({1: 0x71}, saved)
    assert (part.streams[1], part.device, part.contexts) == (0x71, 0, {1})

    cuda.restore_streams(saved)
    assert (part.streams[1], part.device, part.contexts) == (0, 0, {1})
    assert part.calls == []


def test_a_current_device_that_only_torch_remembers_is_remembered_again(cuda, part, monkeypatch):
    part.contexts = {1}
    remembered = [0]

    def set_stream(**stream: int) -> None:
        part.set_stream(**stream)
        remembered.clear()  # as torch forgets it when it selects a device

    def remember(device: int) -> None:
        remembered.append(device)

    monkeypatch.setattr(torch._C, "_cuda_setStream", set_stream, raising=False)
    monkeypatch.setattr(
        torch._C, "_cuda_getDevice", lambda: remembered[0] if remembered else 1, raising=False
    )
    monkeypatch.setattr(torch._C, "_cuda_maybeExchangeDevice", remember, raising=False)

    saved = cuda.save_streams([1])
    cuda.set_streams({1: 0x71}, saved)
    assert remembered == [0]
    cuda.restore_streams(saved)
    assert remembered == [0]


def test_a_stream_that_is_set_before_torch_has_used_cuda_is_current_for_gpufut_too(cuda, part):
    part.initialized = False

    saved = cuda.save_streams([0])
    cuda.set_streams({0: 0x70}, saved)

    assert cuda.current_stream(0) == 0x70
    assert part.calls == ["init"]


def test_for_no_devices_nothing_is_set(cuda, part):
    saved = cuda.save_streams([])
    cuda.set_streams({}, saved)
    cuda.restore_streams(saved)

    assert (part.streams, part.device) == ({}, 0)


def test_devices_in_use_are_those_with_a_context(cuda, part):
    part.contexts = {0, 2}
    assert list(cuda.devices_in_use()) == [0, 2]

    part.initialized = False
    assert list(cuda.devices_in_use()) == []


# -- current streams elsewhere ---------------------------------------------------------------------


@pytest.mark.parametrize("current", [0, 1, 2])
@pytest.mark.parametrize("devices", [{0: 3}, {1: 5}, {1: 5, 0: 3}, {0: 1, 1: 2, 2: 3}])
def test_elsewhere_streams_are_set_and_restored_alike(xpu, elsewhere, current, devices):
    before = {0: 7, 1: 0, 2: 9}
    elsewhere.device, elsewhere.streams = current, dict(before)

    saved = xpu.save_streams(list(devices))
    xpu.set_streams(devices, saved)
    assert elsewhere.streams == before | devices
    assert elsewhere.device == current
    assert [xpu.current_stream(device) for device in devices] == list(devices.values())

    elsewhere.device = 1
    for _ in range(2):
        xpu.restore_streams(saved)
        assert (elsewhere.streams, elsewhere.device) == (before, current)


def test_elsewhere_half_a_change_is_undone(xpu, elsewhere, monkeypatch):
    elsewhere.streams = {0: 5, 1: 7, 2: 9}
    saved = xpu.save_streams([1, 2])
    with monkeypatch.context() as fault:
        set_stream = elsewhere.set_stream

        def fail(stream: Any) -> None:
            if stream.device_index == 2:
                raise RuntimeError("out of streams")
            set_stream(stream)

        fault.setattr(adapter, "_set_current_stream", fail)
        with pytest.raises(RuntimeError, match="out of streams"):
            xpu.set_streams({1: 3, 2: 4}, saved)
    assert elsewhere.streams[1] == 3

    xpu.restore_streams(saved)
    assert (elsewhere.streams, elsewhere.device) == ({0: 5, 1: 7, 2: 9}, 0)


@pytest.fixture
def module(xpu: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch's module for the device, such as torch.xpu."""
    module = type("module", (), {"is_initialized": staticmethod(lambda: True)})
    monkeypatch.setattr(torch, "get_device_module", lambda kind: module)
    return module


def test_elsewhere_devices_in_use_are_those_with_memory(xpu, elsewhere, module, monkeypatch):
    elsewhere.reserved = {1: 4096}
    assert list(xpu.devices_in_use()) == [1]

    module.is_initialized = staticmethod(lambda: False)
    assert list(xpu.devices_in_use()) == []


def test_elsewhere_all_devices_count_as_in_use_if_torch_does_not_say(
    xpu, elsewhere, module, monkeypatch
):
    monkeypatch.delattr(module, "is_initialized")
    monkeypatch.delattr(torch.accelerator, "memory_reserved")
    assert list(xpu.devices_in_use()) == [0, 1, 2]


def test_elsewhere_the_only_device_is_in_use(xpu, module, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    assert list(xpu.devices_in_use()) == [0]


# -- stream objects --------------------------------------------------------------------------------


@pytest.fixture
def cuda_stream(part: CudaPart, monkeypatch: pytest.MonkeyPatch) -> type:
    """torch.cuda.Stream: the ids of pool streams are odd, and their handles are elsewhere."""

    class CudaStream(torch.Stream):  # type: ignore[misc]
        @property
        def cuda_stream(self) -> int:
            own: int = self.stream_id
            return own if own % 2 == 0 else 0x5000 + own

    monkeypatch.setattr(torch.cuda, "Stream", CudaStream)
    return CudaStream


@pytest.mark.parametrize(("stream_id", "handle"), [(0, 1), (2, 2), (0x7F00, 0x7F00), (3, 0x5003)])
def test_a_cuda_stream_is_known_by_its_handle(cuda_stream, stream_id, handle):
    own = cuda_stream(stream_id=stream_id, device_index=1, device_type=CUDA)

    for each in (own, stream(stream_id, 1)):
        assert adapter.ADAPTER.stream_of(each) == (Device("cuda", 1), handle)


def test_a_stream_of_another_device_is_known_by_torchs_id(elsewhere):
    assert adapter.ADAPTER.stream_of(stream(33, 2, XPU)) == (Device("xpu", 2), 33)


def test_a_cuda_stream_in_a_build_without_cuda_is_refused(built_without):
    with pytest.raises(DeviceUnavailableError, match="this torch has no CUDA"):
        adapter.ADAPTER.stream_of(stream(16))


@pytest.mark.parametrize("make", [lambda: torch.Stream("cpu"), lambda: 5, object, torch.cpu.Stream])
def test_what_is_no_stream_of_a_device_is_none(part, make):
    assert adapter.ADAPTER.stream_of(make()) is None


# -- copies ----------------------------------------------------------------------------------------


@pytest.fixture
def pinning(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch with pinned memory, which is ordinary memory here. Gives what was allocated."""
    allocated: list[Any] = []
    empty_like, is_pinned = torch.empty_like, torch.Tensor.is_pinned

    def allocate(tensor: Any, *, pin_memory: bool = False, **options: Any) -> Any:
        made = empty_like(tensor, **options)
        if pin_memory:
            allocated.append(made)
        return made

    monkeypatch.setattr(torch, "empty_like", allocate)
    monkeypatch.setattr(
        torch.Tensor, "is_pinned", lambda self: any(each is self for each in allocated)
    )
    assert not is_pinned(torch.zeros(1))
    return allocated


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Each copy that was asked for: the method, and whether it need not be waited for."""
    asked: list[tuple[str, bool]] = []

    def noted(name: str) -> Any:
        method = getattr(torch.Tensor, name)

        def call(tensor: Any, *args: Any, non_blocking: bool = False, **options: Any) -> Any:
            asked.append((name, non_blocking))
            return method(tensor, *args, non_blocking=non_blocking, **options)

        return call

    for name in ("copy_", "to"):
        monkeypatch.setattr(torch.Tensor, name, noted(name))
    return asked


def test_to_host_copies_into_pinned_memory_without_waiting(cuda, pinning, copies):
    source = torch.arange(6.0).reshape(2, 3)

    target = cuda.to_host(source)

    assert copies == [("copy_", True)]
    assert [id(each) for each in pinning] == [id(target)]
    assert torch.equal(target, source)
    assert target.data_ptr() != source.data_ptr()


@pytest.mark.parametrize(
    "source",
    [
        torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(8.0)[::2],
        torch.zeros(0, 3),
        torch.tensor(5),
    ],
    ids=["channels_last", "transposed", "strided", "empty", "scalar"],
)
def test_to_host_keeps_values_and_layout(cuda, pinning, source):
    target = cuda.to_host(source)

    assert torch.equal(target, source)
    assert target.dtype is source.dtype
    assert target.stride() == torch.empty_like(source).stride()


def test_to_host_gives_a_copy_that_has_left_the_graph(cuda, pinning):
    weight = torch.nn.Parameter(torch.ones(2))

    for source in (weight, weight * 2):
        target = cuda.to_host(source)
        assert not target.requires_grad
        assert type(target) is torch.Tensor


@pytest.mark.parametrize("view", ["conj", "imag"])
def test_to_host_computes_a_lazy_view_before_the_copy(cuda, pinning, monkeypatch, view):
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    source = numbers.conj() if view == "conj" else numbers.conj().imag
    assert source.is_conj() or source.is_neg()
    copied: list[Any] = []
    copy = torch.Tensor.copy_

    def noted(target: Any, source: Any, **_: Any) -> Any:
        copied.append(source)
        return copy(target, source)

    monkeypatch.setattr(torch.Tensor, "copy_", noted)

    target = cuda.to_host(source)

    assert torch.equal(target, source.resolve_conj().resolve_neg())
    for each in (target, *copied):
        assert not each.is_conj()
        assert not each.is_neg()


def sparse(kind: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the layout is new
        return torch.eye(3).to_sparse(layout=getattr(torch, kind))


@pytest.mark.parametrize("kind", ["sparse_coo", "sparse_csr"])
def test_to_host_waits_for_what_has_no_pinned_form(cuda, pinning, copies, kind):
    source = sparse(kind)
    copies.clear()

    target = cuda.to_host(source)

    assert target.layout is source.layout
    assert torch.equal(target.to_dense(), torch.eye(3))
    assert ("to", False) in copies
    assert pinning == []


def test_to_host_waits_where_there_is_no_pinned_memory(cuda, copies, monkeypatch):
    def refuse(*_: Any, pin_memory: bool = False, **__: Any) -> Any:
        assert pin_memory
        raise RuntimeError("no pinned memory allocator is available")

    monkeypatch.setattr(torch, "empty_like", refuse)
    source = torch.arange(3.0, requires_grad=True)

    target = cuda.to_host(source)

    assert copies == [("to", False)]
    assert torch.equal(target, source)
    assert not target.requires_grad


def to_meta(framework: Any) -> Any:
    """The framework, whose devices hold no data."""
    framework.device_type = "meta"
    return framework


def test_to_device_copies_from_pinned_memory_without_waiting(xpu, pinning, copies):
    pinned = torch.empty_like(torch.zeros(3), pin_memory=True)

    target = to_meta(xpu).to_device(pinned, 0)

    assert target.device.type == "meta"
    assert copies == [("to", True)]
    assert len(pinning) == 1


def test_to_device_has_the_device_read_a_copy_of_ordinary_memory(xpu, pinning, copies):
    source = torch.arange(3.0, requires_grad=True)

    target = to_meta(xpu).to_device(source, 0)

    assert copies == [("copy_", False), ("to", True)]
    assert torch.equal(pinning[0], source)
    assert target.grad_fn is not None  # it stays in the graph


def test_to_device_takes_numpys_arrays_as_tensors_of_their_memory(xpu, pinning, copies):
    source = np.arange(3.0)

    target = to_meta(xpu).to_device(source, 0)

    assert target.device.type == "meta"
    assert pinning[0].tolist() == [0.0, 1.0, 2.0]


def test_to_device_waits_for_ordinary_memory_that_cannot_be_copied_first(
    xpu, pinning, copies, monkeypatch
):
    source = sparse("sparse_coo")
    copies.clear()

    target = to_meta(xpu).to_device(source, 0)

    assert target.device.type == "meta"
    assert all(not non_blocking for _, non_blocking in copies)


def test_to_device_makes_a_context_where_the_copy_goes_and_pins_memory_then(
    xpu, pinning, monkeypatch
):
    made: list[str] = []
    empty, empty_like = torch.empty, torch.empty_like

    def note_empty(*size: Any, **options: Any) -> Any:
        made.append(options["device"].type)
        return empty(*size, **options)

    def note_pinned(*like: Any, **options: Any) -> Any:
        made.append("pinned")
        return empty_like(*like, **options)

    monkeypatch.setattr(torch, "empty", note_empty)
    monkeypatch.setattr(torch, "empty_like", note_pinned)

    to_meta(xpu).to_device(torch.zeros(3), 0)

    assert made == ["meta", "pinned"]


def test_to_device_leaves_the_order_of_two_devices_to_torch(xpu, copies):
    to_meta(xpu).to_device(torch.empty(3, device="meta"), 0)

    assert copies == [("to", True)]


def test_a_host_tensor_is_not_taken_for_copied_to_a_device_that_torch_knows_nothing_of():
    future = Future[Any]()
    future.set_result({"labels": torch.ones(2)})

    with sim.Machine(), pytest.raises(TypeError, match=r"torch.Tensor in host memory.* sim:0"):
        future.to("sim:0").wait()


def test_pinned_memory_that_is_another_librarys_stays_until_the_copy_has_read_it(standin):
    world = standin("mixed")
    import cupyx

    host = cupyx.empty_pinned((4,), np.float32)
    host.fill(3.0)
    alive = weakref.ref(host)
    future = Future[Any]()
    future.set_result(torch.from_numpy(host))  # torch has not used CUDA yet, and does not look
    assert not torch.cuda.is_initialized()
    del host

    copy = future.to(world.devices[0])
    del future

    assert alive() is not None
    assert copy.to_host().wait().tolist() == [3.0] * 4
    world.settle()
    assert alive() is None
