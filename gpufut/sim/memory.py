"""Device memory: blocks of bytes, who owns them for a while, and the allocator that hands them on.

The allocator keeps a free list ("arena") per stream, like those of torch and CuPy: memory that was
allocated while stream S was current goes back to S's arena when its owner dies, and the next array
of S may get it at once, since what S does is in order anyway. It says nothing about *other* streams
that still use the memory: that is the bug it exists to show.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpufut.sim.clocks import START, Clock, joined
from gpufut.sim.layout import Bytes, Layout, NumpyArray
from gpufut.sim.races import Access, AccessKind, Shadow, Site

if TYPE_CHECKING:
    from gpufut.sim.streams import Op, Stream

POISON_BYTE = 0xCB
"""Fills memory that its owner has not written. Floats get sign and exponent bits on top: a NaN."""

_POISON: dict[str, np.uint16 | np.uint32 | np.uint64] = {
    "f2": np.uint16(0xFFCB),
    "f4": np.uint32(0xFFCBCBCB),
    "f8": np.uint64(0xFFFBCBCBCBCBCBCB),
}
_GRAIN = 512  # bytes; sizes are rounded up so that arrays of nearly one size share blocks
_numbers = itertools.count(1)


class Block:
    """Bytes of one device, or pinned bytes of the host.

    `home` is the handle of the stream whose arena the block goes back to; 0 if none takes it.
    `known` is what is over for whoever gets it next: what the threads knew that have freed it, and
    what the allocator has waited for.

    Invariant  `filled` is the number of the latest owner whose work has reached the bytes.
    Lock       the machine's guards all fields.
    """

    __slots__ = ("data", "filled", "home", "known", "nbytes", "shadow")

    def __init__(self, nbytes: int, home: int) -> None:
        self.nbytes = nbytes
        self.home = home
        self.data: Bytes | None = None  # made when first touched: most programs touch little
        self.filled = 0
        self.known: Clock = START
        self.shadow = Shadow()

    def bytes(self) -> Bytes:
        """The bytes as they are."""
        if self.data is None:
            self.data = np.empty(self.nbytes, np.uint8)
        return self.data


class Lease:
    """One owner's time in a block; `device` is None for pinned memory of the host.

    Queued work holds the lease, never the owner: as on CUDA, a pending kernel keeps no array alive.
    """

    __slots__ = ("block", "device", "dtype", "name", "number")

    def __init__(self, block: Block, device: int | None, name: str, dtype: np.dtype[Any]) -> None:
        self.block = block
        self.device = device
        self.name = name
        self.dtype = dtype
        self.number = next(_numbers)

    def bytes(self) -> Bytes:
        """The bytes, poisoned if this owner's work is the first of its kind to reach them.

        Poison is laid by the first operation of the new owner, not by the host when it frees:
        work of the former owner that is queued *before* that operation must still see its data.
        """
        data = self.block.bytes()
        if self.block.filled < self.number:
            self.block.filled = self.number
            poison(data, self.dtype)
        return data


class View:
    """An array as queued work sees it: a lease and a layout."""

    __slots__ = ("layout", "lease")

    def __init__(self, lease: Lease, layout: Layout) -> None:
        self.lease = lease
        self.layout = layout

    def access(self, kind: AccessKind, site: Site) -> Access:
        """What the race detector is told when work of *site* uses it."""
        lease = self.lease
        return Access(kind, site, lease.name, self.layout, lease.number)

    def array(self, *, writeable: bool) -> NumpyArray:
        """What a kernel gets. With the machine's lock held."""
        array = self.layout.on(self.lease.bytes())
        if not writeable:
            array.flags.writeable = False
        return array


class Memory:
    """Owns the bytes of one array and of all its views. Keeping it keeps the bytes.

    `stream` is the one that was current at the allocation: to its arena the bytes go back.

    When the last reference goes the bytes go back to the allocator. That takes no lock and may
    happen anywhere, in any thread: the allocator looks at its next call.
    """

    __slots__ = ("__weakref__", "_freed", "_recorded", "lease", "nbytes", "stream")

    def __init__(self, lease: Lease, stream: Stream, nbytes: int, freed: deque[Freed]) -> None:
        self.lease = lease
        self.stream = stream
        self.nbytes = nbytes
        self._freed = freed
        self._recorded: dict[Stream, None] = {}

    def record_stream(self, stream: Stream) -> None:
        """Do not reuse the bytes before the work that *stream* holds at the free is done."""
        if stream is not self.stream:
            self._recorded[stream] = None

    def __del__(self) -> None:
        # What the streams hold *now* is what has to end. Plain attribute reads and an append: a
        # finalizer may strike while this very thread holds the machine's lock.
        last = [stream.last_op for stream in self._recorded]
        block = self.lease.block
        hosts = self.stream.engine.hosts
        over: list[Access] = []
        known = START
        if hosts.several:  # else who gets the bytes next is who knows all this anyway
            # Whoever used the bytes had a reference, and this was the last one. So all that these
            # threads did with them comes before this, and what they waited for before they let go
            # of their own is over, although nobody sees that these references order the threads.
            over = block.shadow.over_for_their_threads()
            known = block.shadow.known_to_users(hosts.known_here())
        self._freed.append((block, self.nbytes, [op for op in last if op is not None], known, over))


Freed: TypeAlias = "tuple[Block, int, list[Op], Clock, list[Access]]"
"""What a finalizer leaves for the allocator.

The block, the bytes that were asked for, the work that has to end first, what the freeing thread
knows, and the accesses that are over.
"""


class Allocator:
    """The caching allocator of one library.

    Invariant  a block is owned by one `Memory`, or waits in `_freed` or `_waiting`, or is in one
               arena; never two of these. `_waiting` holds it with the work that has to end first,
               in the queue of the stream of the last item; a queue is in the order of the frees.
    Lock       the machine's guards all but `_freed`, whose `append` needs none.
    """

    def __init__(self) -> None:
        self.allocations = 0
        self.reuses = 0
        self.live_bytes = 0
        self.reserved_bytes = 0
        self._freed: deque[Freed] = deque()
        self._waiting: dict[Stream, deque[tuple[Block, list[Op]]]] = {}
        # By handle, as CuPy's: a stream that gets the handle of a destroyed one takes its arena
        # over, with all that the old one has not finished.
        self._arenas: dict[int, dict[int, list[Block]]] = {}

    def allocate_locked(
        self, nbytes: int, stream: Stream, name: str, dtype: np.dtype[Any], *, private: bool = False
    ) -> Memory:
        """Memory of *nbytes* from the arena of *stream*; if *private*, from and for no arena."""
        size = max(1, -(-nbytes // _GRAIN)) * _GRAIN
        block = None if private else self._take_locked(stream.handle, size)
        if block is None:
            block = Block(size, 0 if private else stream.handle)
            self.reserved_bytes += size
        else:
            self.reuses += 1
        self.allocations += 1
        self.live_bytes += nbytes
        return Memory(Lease(block, stream.device, name, dtype), stream, nbytes, self._freed)

    def fits_locked(self, nbytes: int, stream: Stream) -> bool:
        """Whether the arena of *stream* has that much: else the memory comes from the driver."""
        return any(nbytes <= size for size in self._arenas.get(stream.handle, ()))

    def collect_locked(self) -> None:
        """Take over what finalizers left."""
        freed = self._freed
        while freed:
            block, nbytes, last, known, over = freed.popleft()
            self.live_bytes -= nbytes
            block.known = joined(block.known, known)
            if over:
                block.shadow.forget(over)
            if last:
                self._waiting.setdefault(last[-1].stream, deque()).append((block, last))
            else:
                self._put_locked(block)

    def drain_locked(self, is_over: Callable[[Op], bool]) -> None:
        """Take over what finalizers left, and put back into the arenas what may be reused.

        *is_over* says of an operation whether it is done.
        """
        self.collect_locked()
        for queue in tuple(self._waiting.values()):
            # A stream ends its work in order, so those behind one that waits wait too.
            while queue and is_over(queue[0][1][-1]):
                block, last = queue.popleft()
                while last and is_over(last[-1]):
                    block.known = joined(block.known, last.pop().all_before())
                if last:
                    self._waiting.setdefault(last[-1].stream, deque()).append((block, last))
                else:
                    self._put_locked(block)

    def _put_locked(self, block: Block) -> None:
        if block.home == 0:
            self.reserved_bytes -= block.nbytes
            return
        self._arenas.setdefault(block.home, {}).setdefault(block.nbytes, []).append(block)

    def trim_locked(self) -> None:
        """Give up the free blocks."""
        for arena in self._arenas.values():
            self.reserved_bytes -= sum(size * len(blocks) for size, blocks in arena.items())
        self._arenas.clear()

    def _take_locked(self, stream: int, size: int) -> Block | None:
        """The block freed last that fits exactly, else the smallest larger one, else None."""
        arena = self._arenas.get(stream)
        if not arena:
            return None
        if size not in arena:
            larger = [other for other in arena if other > size]
            if not larger:
                return None
            size = min(larger)
        blocks = arena[size]
        block = blocks.pop()
        if not blocks:
            del arena[size]
        return block


def pinned_lease(nbytes: int, name: str, dtype: np.dtype[Any]) -> Lease:
    """Fresh page-locked host memory, which no arena takes back."""
    return Lease(Block(max(1, nbytes), 0), None, name, dtype)


def poison(data: Bytes, dtype: np.dtype[Any]) -> None:
    """Fill *data* with the pattern of unwritten memory for arrays of *dtype*."""
    part = np.dtype(dtype.type(0).real.dtype) if dtype.kind == "c" else dtype
    pattern = _POISON.get(part.str[1:])
    usable = 0 if pattern is None else data.nbytes // pattern.nbytes * pattern.nbytes
    data[usable:] = POISON_BYTE
    if pattern is not None:
        data[:usable].view(pattern.dtype)[:] = pattern


def is_poison(array: NumpyArray) -> bool:
    """Whether all of *array* reads as memory that nobody has written.

    >>> is_poison(np.zeros(3))
    False
    """
    array = np.ascontiguousarray(array)
    expected: Bytes = np.empty(array.nbytes, np.uint8)
    poison(expected, array.dtype)
    return array.nbytes > 0 and array.tobytes() == expected.tobytes()
