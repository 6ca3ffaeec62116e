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

# The machines that are told, each as often as it is to be. Replaced as a whole, under `_changing`.
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
    hosts = dict.fromkeys(engine.hosts for engine in _engines)
    return tuple((each.number, *each.publish()) for each in hosts)


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


class _Start:
    """Starts a thread, as `Thread.start` has it done."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self._original = original

    def __call__(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        thread = getattr(function, "__self__", None)
        if _engines and isinstance(thread, threading.Thread):
            _watch_threads()
            _started[thread] = note()
        return self._original(function, *args, **kwargs)


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
    """What gpufut's futures tell."""

    release = staticmethod(release)
    acquire = staticmethod(acquire)
    is_last_user = staticmethod(is_last_user)


def _watch_futures(watcher: _Watcher | None) -> None:
    # By name, as other modules are found here: this package knows nothing of the one that it is
    # part of.
    order: Any = sys.modules.get("gpufut.order")
    if order is not None:
        order.watch(watcher)


_OURS: Final = __name__.rpartition(".")[0]


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


def _make(changes: list[_Change]) -> None:
    for change in changes:
        if change.names[change.name] is not change.before:
            change.prepare()  # somebody else has replaced it since the last time
        setattr(change.owner, change.name, change.now)


def _undo(changes: list[_Change]) -> None:
    for change in changes:
        # What somebody else has replaced meanwhile is theirs; ours does nothing any more.
        if change.names[change.name] is change.now:
            setattr(change.owner, change.name, change.before)


# What may be asked for before there is a second thread, and how a second thread begins. Machines
# may live for microseconds and never see one: whatever can wait, waits.
_at_once: Final = [
    _Change(threading, "Lock", _Lock),
    _Change(threading, "RLock", _RLock),
    _Change(queue, "SimpleQueue", _SimpleQueue),
]
# Not `Thread.start` itself: to change a class makes all that uses it slower for a while.
for _name in ("_start_new_thread", "_start_joinable_thread"):  # the second since Python 3.13
    if hasattr(threading, _name):
        _at_once.append(_Change(threading, _name, _Start(getattr(threading, _name))))
_with_threads: Final = [
    _Change(threading.Thread, "join", _join),
    _Change(threading.Thread, "is_alive", _alive),
    _Change(threading.Condition, "__enter__", _enter),
    _Change(threading.Condition, "__exit__", _exit),
    _Change(threading.Condition, "wait", _wait),
    _Change(threading.Event, "set", _set),
    _Change(threading.Event, "is_set", _is_set),
]
# Of modules that are not imported for it: module, class, method.
_optional: Final[list[tuple[str, str, str, Any]]] = [
    ("concurrent.futures.thread", "_WorkItem", "__init__", _submit),
    ("concurrent.futures.thread", "_WorkItem", "run", _run),
    ("asyncio.base_events", "BaseEventLoop", "call_soon_threadsafe", _call_soon),
]

# Modules import names from others: `from threading import Lock`. Those of the standard library and
# our own are left as they are: their ways are known.
_borrowed: Final = {change.name: change for change in _at_once if change.name[0] != "_"}
_looked_at: Final[set[str]] = set()
_module_count = 0
_are_threads = False  # whether `_with_threads` is in force


def _look_around() -> None:
    """Find what modules have borrowed that are new since the last look."""
    global _module_count
    _module_count = len(sys.modules)
    for name, module in tuple(sys.modules.items()):
        if name not in _looked_at:
            _looked_at.add(name)
            if name.partition(".")[0] in sys.stdlib_module_names or name.startswith(_OURS):
                continue
            names = getattr(module, "__dict__", {})
            for borrowed, change in _borrowed.items():
                if names.get(borrowed) is change.before:
                    _at_once.append(_Change(module, borrowed, change.now))


def _give_back() -> None:
    """Let modules that were imported meanwhile have the true things."""
    for name, module in tuple(sys.modules.items()):
        if name not in _looked_at:
            names = getattr(module, "__dict__", {})
            for borrowed, change in _borrowed.items():
                if names.get(borrowed) is change.now:
                    setattr(module, borrowed, change.before)


def _watch_threads() -> None:
    """There is a second thread, or soon will be."""
    global _are_threads
    with _changing:
        if not _engines:
            return
        for wanted in tuple(_optional):
            module, kind, method, instead = wanted
            if module in sys.modules:
                _optional.remove(wanted)
                change = _Change(getattr(sys.modules[module], kind), method, instead)
                _with_threads.append(change)
                if _are_threads:
                    _make([change])
        if not _are_threads:
            _are_threads = True
            _make(_with_threads)
            _watch_futures(_Watcher())


def watch(engine: Engine) -> None:
    """Tell *engine* from now on what host threads tell each other."""
    global _engines
    with _changing:
        first = not _engines
        _engines = (*_engines, engine)
        if first:
            if len(sys.modules) != _module_count:
                _look_around()
            _make(_at_once)
        if len(_threads) > 1:
            _watch_threads()


def unwatch(engine: Engine) -> None:
    """Take one `watch` back. After the last one all is as it was before the first."""
    global _are_threads, _engines
    with _changing:
        left = list(_engines)
        left.remove(engine)
        _engines = tuple(left)
        if left:
            return
        _undo(_at_once)
        if len(sys.modules) != _module_count:
            _give_back()
        if _are_threads:
            _are_threads = False
            _undo(_with_threads)
            _watch_futures(None)
