"""What host threads tell each other, as far as Python shows it.

While a machine with `threads="exact"` is active, these order the thread that goes on after the one
that let it, and the race detector knows:

- `Thread.start`; `Thread.join` and `is_alive` of a thread that has ended;
- locks: `Condition`, also those that were made before, and all that is built on it (`Event`,
  `Semaphore`, `Barrier`, the queues of `queue`, futures of `concurrent.futures`); `Lock`, `RLock`
  and `SimpleQueue` that are made meanwhile, under these names, of their own modules or of others
  that import them from there;
- what a `ThreadPoolExecutor` is given to do;
- `call_soon_threadsafe` of asyncio's event loops;
- gpufut's futures, which say it themselves (`gpufut.order`).

Not seen: a `Lock`, `RLock` or `SimpleQueue` that was made before the machine was active, or under
another name, as `_thread.allocate_lock()` is; `_thread.start_new_thread`; plain variables, lists
and deques that are looked at again and again; pipes, sockets, signals and files; what C code does
inside. `Machine.host_release` and `host_acquire` say these things.

A thread that takes a lock comes after whoever left it last, as it happened in this run.
"""

from __future__ import annotations

import functools
import queue
import sys
import threading
import weakref
from _thread import allocate_lock, get_ident
from collections.abc import Callable
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gpufut.sim.clocks import START, Clock, joined

if TYPE_CHECKING:
    from gpufut.sim.engine import Engine

# What one thread lets another know: for each machine its number, the thread's key and its clock.
Note: TypeAlias = tuple[tuple[int, int, Clock], ...]

_MOST_NOTES = 16  # left at one place before they are made one

# The machines that are told. Replaced as a whole, under `_changing`.
_engines: tuple[Engine, ...] = ()
_changing = RLock()


# Threads by their numbers. One that is just beginning is not there yet, sets an event all the same,
# and must not be asked for its object: it would be given a false one.
_threads: dict[int, threading.Thread] = threading._active  # type: ignore[attr-defined]


# -- notes -----------------------------------------------------------------------------------------


def note() -> Note:
    """What the calling thread lets others know now."""
    if not _engines or get_ident() not in _threads:
        return ()
    return tuple((engine.hosts.number, *engine.hosts.publish()) for engine in _engines)


def learn(note: Note) -> None:
    """The calling thread comes after *note*."""
    if get_ident() not in _threads:
        return
    for number, key, clock in note:
        for engine in _engines:
            if engine.hosts.number == number:
                if engine.host().known.key != key:
                    engine.hosts.learn(clock)
                break


class _Notes:
    """The notes that were left at one place, by any number of threads.

    Takes no lock that a finalizer could wait for: notes are appended, and made fewer by who gets
    the lock at once.
    """

    __slots__ = ("__weakref__", "_fewer", "_notes")

    def __init__(self) -> None:
        self._notes: list[Note] = []
        self._fewer = allocate_lock()

    def leave(self) -> None:
        self._notes.append(note())
        if len(self._notes) > _MOST_NOTES and self._fewer.acquire(False):
            try:
                count = len(self._notes)
                clocks: dict[int, Clock] = {}
                for number, _, clock in (each for note in self._notes[:count] for each in note):
                    clocks[number] = joined(clocks.get(number, START), clock)
                # Of no thread in particular, so that all learn it.
                self._notes[:count] = [tuple((n, 0, clock) for n, clock in clocks.items())]
            finally:
                self._fewer.release()

    def read(self) -> None:
        for each in tuple(self._notes):
            learn(each)


_places: weakref.WeakKeyDictionary[object, _Notes] = weakref.WeakKeyDictionary()


def release(place: object) -> None:
    """Leave at *place* what the calling thread knows, for whoever calls `acquire` there."""
    if _engines:
        notes = _places.get(place)
        if notes is None:
            notes = _places.setdefault(place, _Notes())
        notes.leave()


def acquire(place: object) -> None:
    """The calling thread comes after all that was released at *place* so far."""
    if _engines:
        notes = _places.get(place)
        if notes is not None:
            notes.read()


# What a lock's holder left there. One note is enough: who holds it next knows what was there.
_left: weakref.WeakKeyDictionary[object, Note] = weakref.WeakKeyDictionary()


# -- threads ---------------------------------------------------------------------------------------

_is_alive: Final = threading.Thread.is_alive
_started: weakref.WeakKeyDictionary[threading.Thread, Note] = weakref.WeakKeyDictionary()


def known_at_start(thread: threading.Thread, number: int) -> Clock:
    """What a thread knows of a machine when it first has to do with it."""
    if len(_threads) > 1:
        _watch_threads()
    for machine, _, clock in _started.get(thread, ()):
        if machine == number:
            return clock
    return START


def _start(original: Callable[..., None], self: threading.Thread) -> None:
    if _engines:
        _watch_threads()
        _started[self] = note()
    original(self)


def _join(
    original: Callable[..., None], self: threading.Thread, timeout: float | None = None
) -> None:
    original(self, timeout)
    if _engines and not _is_alive(self):
        _learn_from(self)


def _alive(original: Callable[..., bool], self: threading.Thread) -> bool:
    alive = original(self)
    if _engines and not alive:
        _learn_from(self)
    return alive


def _learn_from(thread: threading.Thread) -> None:
    """The calling thread comes after all that *thread* did, which does no more."""
    learn(_started.get(thread, ()))  # of that, at least, if the thread had nothing to do with us
    for engine in _engines:
        engine.hosts.learn_from(thread)


# -- locks -----------------------------------------------------------------------------------------


class _Lock:
    """A `threading.Lock` that says who comes after whom. Making it counts as leaving it."""

    _make: Callable[[], Any] = staticmethod(allocate_lock)

    def __init__(self) -> None:
        self._lock = self._make()
        self._note = note()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        taken: bool = self._lock.acquire(blocking, timeout)
        if taken and _engines:
            learn(self._note)
        return taken

    def release(self) -> None:
        # Before, for afterwards it is somebody else's. A lock that is not held is not left.
        before = self._note
        if _engines:
            self._note = note()
        try:
            self._lock.release()
        except RuntimeError:
            self._note = before
            raise

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lock, name)

    def __repr__(self) -> str:
        return f"<watched {self._lock!r}>"


class _RLock(_Lock):
    """The same of a `threading.RLock`."""

    _make = staticmethod(RLock)

    # What `Condition.wait` calls.

    def _release_save(self) -> Any:
        if _engines:
            self._note = note()
        return self._lock._release_save()

    def _acquire_restore(self, state: Any) -> None:
        self._lock._acquire_restore(state)
        if _engines:
            learn(self._note)


def _lock_of(condition: threading.Condition) -> Any:
    """The lock of a condition, if nobody but the condition says who takes it."""
    lock = condition._lock  # type: ignore[attr-defined]  # has no public name
    return None if isinstance(lock, _Lock) else lock


def _enter(original: Callable[..., bool], self: threading.Condition) -> bool:
    taken = original(self)
    if _engines and (lock := _lock_of(self)) is not None:
        learn(_left.get(lock, ()))
    return taken


def _exit(original: Callable[..., None], self: threading.Condition, *error: object) -> None:
    if _engines and (lock := _lock_of(self)) is not None:
        _left[lock] = note()
    original(self, *error)


def _wait(
    original: Callable[..., bool], self: threading.Condition, timeout: float | None = None
) -> bool:
    if not _engines or (lock := _lock_of(self)) is None:
        return original(self, timeout)
    _left[lock] = note()
    try:
        return original(self, timeout)
    finally:
        learn(_left.get(lock, ()))


# An event is looked at without its lock.


def _set(original: Callable[..., None], self: threading.Event) -> None:
    release(self)
    original(self)


def _is_set(original: Callable[..., bool], self: threading.Event) -> bool:
    found = original(self)
    if found:
        acquire(self)
    return found


# -- handing over ----------------------------------------------------------------------------------


class _SimpleQueue(queue.SimpleQueue[Any]):
    """A `queue.SimpleQueue` whose items bring along what who put them knew."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put((note(), item), block, timeout)

    def put_nowait(self, item: Any) -> None:
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        brought, item = super().get(block, timeout)
        learn(brought)
        return item

    def get_nowait(self) -> Any:
        return self.get(False)


def _submit(original: Callable[..., None], self: Any, *args: Any, **kwargs: Any) -> None:
    original(self, *args, **kwargs)
    release(self)


def _run(original: Callable[..., None], self: Any, *args: Any) -> None:
    acquire(self)
    original(self, *args)


class _Call:
    """A call that goes on after the one that asked for it."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self._note = note()

    def __call__(self, *args: object) -> object:
        learn(self._note)
        return self._function(*args)

    def __repr__(self) -> str:
        return repr(self._function)


def _call_soon(
    original: Callable[..., Any], self: Any, callback: Any, *args: Any, **kwargs: Any
) -> Any:
    return original(self, _Call(callback) if _engines else callback, *args, **kwargs)


# -- being told ------------------------------------------------------------------------------------


def is_last_user(is_last: bool) -> None:
    """From now on, or no longer, the calling thread records after all that any enqueued."""
    for engine in _engines:
        engine.host().is_last_user = is_last


class _Watcher:
    """What gpufut's futures tell; there, if they are. By name, as other modules are found here.

    For this package knows nothing of the one that it is part of.
    """

    release = staticmethod(release)
    acquire = staticmethod(acquire)
    is_last_user = staticmethod(is_last_user)

    def make(self) -> None:
        self._ask(self)

    def undo(self) -> None:
        self._ask(None)

    @staticmethod
    def _ask(watcher: _Watcher | None) -> None:
        order: Any = sys.modules.get("gpufut.order")
        if order is not None:
            order.watch(watcher)


class _Change:
    """A name of a module or class, what it means while nobody is told, and what meanwhile.

    What takes the place of a method is given the original first.
    """

    __slots__ = ("before", "instead", "name", "names", "now", "owner")

    def __init__(self, owner: Any, name: str, instead: Any) -> None:
        self.owner = owner
        self.name = name
        self.names = owner.__dict__  # of a class, a view that follows what changes
        self.instead = instead
        self.prepare()

    def prepare(self) -> None:
        self.before = before = self.names[self.name]
        self.now = _method(before, self.instead) if isinstance(self.owner, type) else self.instead


def _method(original: Callable[..., Any], instead: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return instead(original, self, *args, **kwargs)

    return watched


class _Changes:
    """Some of what is changed, by module, class ("" for none) and name.

    Made and taken back again and again, for machines may live for microseconds.
    """

    def __init__(self, *wanted: tuple[str, str, str, Any]) -> None:
        self._wanted = list(wanted)
        self._known: list[_Change] = []
        self._made = 0  # so many of them are in force

    def make(self) -> None:
        """Change what there is by now. Nothing is imported for it."""
        for each in tuple(self._wanted):
            place, kind, name, instead = each
            module: Any = sys.modules.get(place)
            if module is not None:
                owner = getattr(module, kind) if kind else module
                self._known.append(_Change(owner, name, instead))
                self._wanted.remove(each)
        self._make()

    def _make(self) -> None:
        for change in self._known[self._made :]:
            if change.names[change.name] is not change.before:
                change.prepare()
            setattr(change.owner, change.name, change.now)
            self._made += 1

    def undo(self) -> None:
        for change in self._known[: self._made]:
            # What somebody else has replaced meanwhile is theirs; ours does nothing any more.
            if change.names[change.name] is change.now:
                setattr(change.owner, change.name, change.before)
        self._made = 0


class _Borrowed(_Changes):
    """The names that other modules have imported from their own: `from threading import Lock`.

    Of the modules that are there when a machine becomes active, but for the standard library's,
    whose ways are known, and our own.
    """

    def __init__(self, **borrowed: tuple[Any, Any]) -> None:
        super().__init__()
        self._borrowed = borrowed
        self._looked_at = set(sys.stdlib_module_names)
        self._count = 0

    def make(self) -> None:
        if len(sys.modules) != self._count:
            self._count = len(sys.modules)
            for name, module in tuple(sys.modules.items()):
                if name not in self._looked_at:
                    self._looked_at.add(name)
                    self._look_at(name, module)
        self._make()

    def undo(self) -> None:
        super().undo()
        if len(sys.modules) != self._count:  # what was imported meanwhile has borrowed ours
            for name, module in tuple(sys.modules.items()):
                if name not in self._looked_at:
                    for wanted, (before, now) in self._borrowed.items():
                        if getattr(module, "__dict__", {}).get(wanted) is now:
                            setattr(module, wanted, before)

    def _look_at(self, name: str, module: object) -> None:
        if name.startswith(_OURS) or name.partition(".")[0] in sys.stdlib_module_names:
            return
        names = getattr(module, "__dict__", {})
        for wanted, (before, now) in self._borrowed.items():
            if names.get(wanted) is before:
                self._known.append(_Change(module, wanted, now))


_OURS: Final = __name__.rpartition(".")[0]

_at_once: Final = (
    _Changes(
        ("threading", "", "Lock", _Lock),
        ("threading", "", "RLock", _RLock),
        ("threading", "Thread", "start", _start),
        ("queue", "", "SimpleQueue", _SimpleQueue),
    ),
    _Borrowed(
        Lock=(threading.Lock, _Lock),
        RLock=(threading.RLock, _RLock),
        SimpleQueue=(queue.SimpleQueue, _SimpleQueue),
    ),
    _Watcher(),
)
# When there is a second thread: many machines live for microseconds and never see one.
_with_threads: Final = _Changes(
    ("threading", "Thread", "join", _join),
    ("threading", "Thread", "is_alive", _alive),
    ("threading", "Condition", "__enter__", _enter),
    ("threading", "Condition", "__exit__", _exit),
    ("threading", "Condition", "wait", _wait),
    ("threading", "Event", "set", _set),
    ("threading", "Event", "is_set", _is_set),
    ("concurrent.futures.thread", "_WorkItem", "__init__", _submit),
    ("concurrent.futures.thread", "_WorkItem", "run", _run),
    ("asyncio.base_events", "BaseEventLoop", "call_soon_threadsafe", _call_soon),
)

_times: Final[dict[Engine, int]] = {}  # how often each machine is to be told


def watch(engine: Engine) -> None:
    """Tell *engine* from now on what host threads tell each other."""
    global _engines
    with _changing:
        _times[engine] = _times.get(engine, 0) + 1
        _engines = tuple(_times)
        for changes in _at_once:
            changes.make()
        if len(_threads) > 1:
            _with_threads.make()


def unwatch(engine: Engine) -> None:
    """Take one `watch` back. After the last one all is as it was before the first."""
    global _engines
    with _changing:
        _times[engine] -= 1
        if not _times[engine]:
            del _times[engine]
        _engines = tuple(_times)
        if not _engines:
            for changes in (_with_threads, *_at_once):
                changes.undo()


def _watch_threads() -> None:
    """There is a second thread, or soon will be."""
    with _changing:
        if _engines:
            _with_threads.make()
