"""Arrays in simulated memory, and the libraries that own them.

A machine has two array libraries, as torch and CuPy are two libraries on one CUDA device. Each has
current streams of its own and an allocator of its own. `tracking` has `record_stream`, as torch;
`plain` has nothing like it, as CuPy.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self

import numpy as np
import numpy.typing as npt

from gpufut.sim.errors import InvalidHandleError
from gpufut.sim.layout import Layout, NumpyArray
from gpufut.sim.memory import Allocator, Memory, View, pinned_lease

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # known to type checkers; never imported when run

    from gpufut.sim.engine import Engine
    from gpufut.sim.machine import Machine
    from gpufut.sim.streams import Kernel, Operand, Stream

    A = TypeVar("A", bound="Array", default=Any)
else:
    from typing import TypeVar

    A = TypeVar("A", bound="Array")

Shape = int | tuple[int, ...]


class Array:
    """An array on a simulated device. Made by a `Library`; its bytes are reached by kernels only.

    `memory` owns the bytes and is shared by views: keeping it keeps them. Indexing gives a view
    (basic slicing only). `machine` is the one that the device belongs to.
    """

    __slots__ = ("__weakref__", "library", "machine", "memory", "work_view")

    def __init__(self, library: Library[Any], memory: Memory, layout: Layout) -> None:
        self.library = library
        self.machine: Machine = library.machine
        self.memory = memory
        self.work_view = View(memory.lease, layout)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.work_view.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the elements."""
        return self.work_view.layout.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; a view's are fewer than its memory's."""
        return self.work_view.layout.nbytes

    @property
    def device(self) -> int:
        """Index of the device that holds the bytes."""
        return self.memory.stream.device

    @property
    def name(self) -> str:
        """What messages call the array and its views: the library's name and a number."""
        return self.memory.lease.name

    def view(self) -> Self:
        """Another array on the same bytes."""
        return type(self)(self.library, self.memory, self.work_view.layout)

    def __getitem__(self, index: object) -> Self:
        with self.machine.lock:
            data = self.memory.lease.block.bytes()
        layout = self.work_view.layout.sliced(data, index)
        return type(self)(self.library, self.memory, layout)

    def get(self, stream: Stream | None = None) -> NumpyArray:
        """Copy to the host, in stream order, and block until the copy is there.

        Raises:   RaceError: the stream is not ordered after the last write.
                  DeviceError: a device that it waited for has failed.
                  CaptureError: the stream captures, or a capture forbids synchronous reads.
        Streams:  *stream*, else the library's current stream of the array's device.
        """
        if stream is None:
            stream = self.library.current_stream(self.device)
        return stream.read_back(self)

    def __array__(self, *args: object, **kwargs: object) -> NumpyArray:
        raise TypeError(
            "a simulated array does not turn into a NumPy array by itself; copy it to the host by "
            ".get()"
        )

    def __setitem__(self, index: object, value: object) -> None:
        raise TypeError(
            "the host does not write into an array on a device; copy to a part of it by "
            "stream.copy(x[...], value), or launch a kernel that writes it"
        )

    def __iter__(self) -> None:
        raise TypeError("a simulated array cannot be iterated over on the host; use .get()")

    def __repr__(self) -> str:
        kind = type(self).__name__
        return f"<sim.{kind} {self.name} {self.work_view.layout} on device {self.device}>"


class TrackingArray(Array):
    """An array of `Machine.tracking`: its allocator can be told which streams use it."""

    __slots__ = ()

    def record_stream(self, stream: Stream) -> None:
        """Keep the memory from being reused before the work queued on *stream* at the free is done.

        Host bookkeeping only, for the whole memory (views share it), as torch's.
        """
        if stream.machine is not self.machine:
            raise InvalidHandleError(f"{stream!r} is of another machine than {self!r}")
        self.memory.record_stream(stream)


class PlainArray(Array):
    """An array of `Machine.plain`: freed memory may be reused at once by its allocation stream."""

    __slots__ = ()


class PinnedArray:
    """Page-locked host memory, which copies reach asynchronously. Made by `Machine.pinned`.

    Poison until it is written. Its memory is never reused for another array.

    `np.asarray` of it and `x[...]` are reads, `x[...] = data` is a write by the host, of the
    elements concerned, now. None waits; each raises RaceError as `get` and `set` do. What is read
    is a copy; that of a part is read-only, so that nothing is written to it by mistake.

    >>> from gpufut import sim
    >>> with sim.Machine() as m:
    ...     x = m.pinned(3)
    ...     x[:] = 1
    ...     x[0] = 5
    ...     np.asarray(x) + x[0]
    array([10.,  6.,  6.], dtype=float32)
    """

    __slots__ = ("__weakref__", "_engine", "machine", "work_view")

    def __init__(
        self, machine: Machine, engine: Engine, name: str, shape: Shape, dtype: npt.DTypeLike
    ) -> None:
        layout = Layout(as_shape(shape), as_dtype(dtype))
        self.machine = machine
        self.work_view = View(pinned_lease(layout.nbytes, name, layout.dtype), layout)
        self._engine = engine

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""
        return self.work_view.layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the elements."""
        return self.work_view.layout.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the elements; a view's are fewer than its memory's."""
        return self.work_view.layout.nbytes

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.work_view.lease.name

    def get(self) -> NumpyArray:
        """What is there *now*, as a NumPy copy: poison, while the copy into it has not run.

        Never waits. Synchronise first with an event recorded after the copy.

        Raises:   RaceError: the host has not waited for work that writes it.
        """
        engine = self._engine
        with engine.lock:
            engine.access_on_host_locked(self.work_view, "read")
            return self.work_view.array(writeable=False).copy()

    def set(self, data: npt.ArrayLike) -> None:
        """Write *data* from the host, now. The counterpart of `get` for uploads.

        Raises:   RaceError: the host has not waited for work that reads or writes it.
        """
        self[...] = data

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> NumpyArray:
        if copy is False:
            raise ValueError("pinned memory is read into a copy: leave copy=False out")
        found = self.get()
        return found if dtype is None else found.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Any:
        engine = self._engine
        with engine.lock:
            engine.access_on_host_locked(self._part_locked(index), "read")
            found = self.work_view.array(writeable=False)[index]
            if isinstance(found, np.ndarray):
                found = found.copy()
                found.flags.writeable = False
            return found

    def __setitem__(self, index: Any, data: npt.ArrayLike) -> None:
        engine = self._engine
        with engine.lock:
            engine.access_on_host_locked(self._part_locked(index), "write")
            self.work_view.array(writeable=True)[index] = data
            engine.look_locked()

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError(f"{self!r} has no dimension, so it has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        return True  # as of a device array: `x or y` asks whether there is one, and reads nothing

    def __iter__(self) -> None:
        raise TypeError("pinned memory cannot be iterated over; use .get()")

    def _part_locked(self, index: Any) -> View:
        """What `self[index]` touches, as far as a layout can say it; else the whole."""
        view = self.work_view
        if index is Ellipsis:
            return view
        try:
            layout = view.layout.sliced(view.lease.block.bytes(), index)
        except TypeError:  # not by basic slicing
            return view
        return View(view.lease, layout)

    def busy(self) -> bool:
        """Whether work that writes it is enqueued and has not run.

        For tests: it knows what no program on a real device can ask. Makes no progress, orders
        nothing.
        """
        engine = self._engine
        with engine.lock:
            return engine.writes_pending_locked(self.work_view.lease.block)

    def __repr__(self) -> str:
        return f"<sim.PinnedArray {self.name} {self.work_view.layout}>"


class Library(Generic[A]):
    """Makes arrays, and has a current stream per thread and device. `Machine.tracking`, `.plain`.

    >>> from gpufut import sim
    >>> with sim.Machine() as m:
    ...     with m.plain.stream(m.stream()) as stream:
    ...         a = m.plain.array([1, 2, 3])
    ...         stream.launch(lambda x, y: np.multiply(x, 2, out=y), reads=[a], writes=[a])
    ...         a.get().tolist()
    [2, 4, 6]
    """

    def __init__(self, machine: Machine, engine: Engine, name: str, array_type: type[A]) -> None:
        self.machine = machine
        self.name = name
        self.array_type = array_type
        self.allocator = Allocator()
        self._engine = engine

    def array(self, data: npt.ArrayLike, device: int = 0) -> A:
        """A device array with a copy of *data*, written as an operation on the current stream."""
        host = np.asarray(data)  # the copy below takes the snapshot
        result = self._allocate(host.shape, host.dtype, device)
        self.current_stream(device).copy(result, host, name="array")
        return result

    def empty(self, shape: Shape, dtype: npt.DTypeLike = np.float32, device: int = 0) -> A:
        """A device array that nobody has written: poison, until somebody does."""
        return self._allocate(as_shape(shape), as_dtype(dtype), device)

    def zeros(self, shape: Shape, dtype: npt.DTypeLike = np.float32, device: int = 0) -> A:
        """A device array of zeros, written as a kernel on the current stream."""
        result = self.empty(shape, dtype, device)
        self.current_stream(device).launch(_clear, writes=[result], name="zeros")
        return result

    def launch(
        self,
        fn: Kernel,
        *,
        reads: Sequence[Operand] = (),
        writes: Sequence[Operand] = (),
        duration: float = 10e-6,
        name: str | None = None,
    ) -> None:
        """`Stream.launch` on this library's current stream, of the device of the arrays.

        Raises:   ValueError: there is no device array to tell the device by; else as `launch`.
        """
        try:
            arrays = (*writes, *reads)
        except TypeError:
            check_operands(reads, writes)
            raise
        for array in arrays:
            if isinstance(array, Array):
                stream = self.current_stream(array.device)
                stream.launch(fn, reads=reads, writes=writes, duration=duration, name=name)
                return
        raise ValueError("no device array among reads and writes: launch on a stream instead")

    def current_stream(self, device: int) -> Stream:
        """The calling thread's current stream: the default stream, until one is set.

        Creates no context: see `Machine.touched`.
        """
        found = self._engine.host().current.get((self.name, device))
        return found if found is not None else self.machine.default_stream(device)

    def set_stream(self, stream: Stream) -> None:
        """Make *stream* current for this library on the stream's device, in this thread."""
        if stream.machine is not self.machine:
            raise InvalidHandleError(f"{stream!r} is of another machine")
        self._engine.host().current[self.name, stream.device] = stream

    def stream(self, stream: Stream) -> _Current:
        """Make *stream* current inside a `with` block, then restore what was current before."""
        return _Current(self, stream)

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> A:
        if dtype.hasobject:
            raise TypeError(f"device arrays hold no Python objects, got dtype {dtype}")
        layout = Layout(shape, dtype)
        stream = self.current_stream(device)
        memory = self._engine.allocate(self.allocator, layout, stream, self.name)
        return self.array_type(self, memory, layout)

    def __repr__(self) -> str:
        return f"<sim.Library {self.name}>"


class _Current:
    """The `with` block of `Library.stream`. Enter it in one thread, once."""

    __slots__ = ("_before", "_library", "_stream")

    def __init__(self, library: Library[Any], stream: Stream) -> None:
        self._library = library
        self._stream = stream
        self._before: Stream | None = None

    def __enter__(self) -> Stream:
        self._before = self._library.current_stream(self._stream.device)
        self._library.set_stream(self._stream)
        return self._stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            self._library.set_stream(self._before)


def check_operands(reads: object, writes: object) -> None:
    """Raises TypeError if *reads* or *writes* is an array instead of a list of arrays."""
    for what, arrays in (("reads", reads), ("writes", writes)):
        if isinstance(arrays, (Array, PinnedArray, np.ndarray)):
            raise TypeError(f"{what} is a list of arrays, got {arrays!r}: say {what}=[x]")


def as_shape(shape: Shape) -> tuple[int, ...]:
    """*shape* as a tuple of whole numbers."""
    extents = (shape,) if isinstance(shape, (int, np.integer)) else tuple(shape)
    if any(extent < 0 for extent in extents):
        raise ValueError(f"a shape has no negative extents, got {shape}")
    return tuple(int(extent) for extent in extents)


def as_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """*dtype* as NumPy's object."""
    return np.dtype(dtype)


def _clear(array: NumpyArray) -> None:
    array.fill(0)
