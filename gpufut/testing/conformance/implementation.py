"""What is judged: an implementation of futures, behind a small adapter.

The methods are spelled as gpufut and torch spell them. An adapter for futures of the same spelling
names their module and is done; others override what is called otherwise. Nothing has to be offered
but `future`, `set_result`, `wait` and `done`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from typing import Any, ClassVar, Final, NoReturn

from gpufut.testing.conformance.bench import Bench

__all__ = ["Gpufut", "Implementation", "NotOffered", "TorchFutures", "load"]


class NotOffered(Exception):
    """The implementation has no such thing; there is nothing to be judged."""


# What an implementation may leave out. By the name of the adapter's method: the name under which
# gpufut has it, and the argument without which that is something else.
_OF_FUTURES: Final[Mapping[str, tuple[str, str | None]]] = {
    "set_result_on": ("set_result", "streams"),
    "set_exception": ("set_exception", None),
    "try_set_result": ("try_set_result", None),
    "cancel": ("cancel", None),
    "cancelled": ("cancelled", None),
    "value": ("value", None),
    "wait_for": ("wait", "timeout"),
    "wait_on": ("wait", "stream"),
    "exception": ("exception", None),
    "query": ("query", None),
    "synchronize": ("synchronize", "timeout"),
    "synchronized": ("synchronized", None),
    "awaited": ("__await__", None),
    "then": ("then", None),
    "then_async": ("then_async", None),
    "add_done_callback": ("add_done_callback", None),
    "to_host": ("to_host", None),
}
_OF_THE_MODULE: Final = (
    "collect_all", "wait_all", "collect_any", "as_completed", "CancelledError"
)  # fmt: skip


class Implementation:
    """An implementation of futures, as the checks use it.

    Args:
        module: The name of the module that has ``Future`` and, if they are offered,
            ``collect_all``, ``wait_all``, ``collect_any``, ``as_completed`` and ``CancelledError``.

    Attributes:
        name: For the table.
        package: The distribution whose version is shown.
        spec: Under which `load` has found it; another process finds it under the same.
        must_declare: Whether a future has to be told the devices of its value beforehand.
        is_array_library: Whether it is part of an array library, which it cannot but import.
        remarks: By the name of a check, what is to be said beside the verdict.

    >>> class Mine(Implementation):
    ...     def synchronize(self, future, timeout=None):
    ...         return future.block_until_ready(timeout)
    >>> Mine("concurrent.futures").lacks("then")
    'it has no then()'
    >>> Mine("concurrent.futures").lacks("synchronize") is None
    True
    """

    must_declare: ClassVar[bool] = False
    is_array_library: ClassVar[bool] = False
    remarks: ClassVar[Mapping[str, str]] = {}

    def __init__(self, module: str, name: str | None = None) -> None:
        self.module = module
        self.name = module if name is None else name
        self.package = module.partition(".")[0]
        self.spec = ""

    # -- about itself ------------------------------------------------------------------------------

    def version(self) -> str:
        """The version that is judged."""
        return getattr(self._imported(), "__version__", None) or _version_of(self.package)

    def works_on(self, device: str) -> bool:
        """Whether it can be asked on that type of device at all."""
        return True

    def lacks(self, name: str) -> str | None:
        """Why the adapter's method of that name is not offered; None if it is."""
        if getattr(type(self), name, None) is not getattr(Implementation, name, None):
            return None  # the adapter has its own
        if name in _OF_THE_MODULE:
            return None if hasattr(self._imported(), name) else f"it has no {name}"
        if name not in _OF_FUTURES:
            return f"it has no {name}()"
        spelled, argument = _OF_FUTURES[name]
        method = getattr(self._imported().Future, spelled, None)
        if method is None:
            return f"it has no {spelled}()"
        if argument is not None and argument not in _parameters(method):
            return f"its {spelled}() takes no {argument}"
        return None

    def not_offered(self, why: str) -> NoReturn:
        """Say that there is nothing to be judged."""
        raise NotOffered(why)

    @contextmanager
    def session(self) -> Iterator[None]:
        """Around each check: a state that no earlier check has touched."""
        yield

    def settle(self, bench: Bench) -> None:
        """Let go of whatever it has held for work that has finished by now."""

    def held(self) -> int:
        """How many arrays it holds for work that still reads them."""
        raise NotOffered("it does not say what it holds")

    # -- futures -----------------------------------------------------------------------------------

    def future(self, devices: Iterable[object] | None = None) -> Any:
        """A new future, told of the devices on which arrays of its value may live."""
        make = self._imported().Future
        return make() if devices is None else make(devices=devices)

    def new(self, bench: Bench) -> Any:
        """A new future, of which the producer says what it has to say."""
        return self.future(bench.declared() if self.must_declare and bench.declared() else None)

    def set_result(self, future: Any, value: object) -> None:
        """Complete the future with a value."""
        future.set_result(value)

    def set_result_on(self, future: Any, value: object, streams: Sequence[object]) -> None:
        """Complete it with a value on which work was launched on these streams."""
        self._offer("set_result_on")
        future.set_result(value, streams=streams)

    def set_exception(self, future: Any, error: object) -> None:
        """Complete it with an exception."""
        self._offer("set_exception")
        future.set_exception(error)

    def try_set_result(self, future: Any, value: object) -> bool:
        """Complete it with a value, or say that it is complete."""
        self._offer("try_set_result")
        return bool(future.try_set_result(value))

    def cancel(self, future: Any) -> bool:
        """Give it up."""
        self._offer("cancel")
        return bool(future.cancel())

    def cancelled(self, future: Any) -> bool:
        """Whether it was given up."""
        self._offer("cancelled")
        return bool(future.cancelled())

    def done(self, future: Any) -> bool:
        """Whether it is complete, on the host."""
        return bool(future.done())

    def value(self, future: Any) -> Any:
        """The value of a completed one, without any waiting."""
        self._offer("value")
        return future.value()

    def wait(self, future: Any) -> Any:
        """Wait for the value, for work on the current streams."""
        return future.wait()

    def wait_for(self, future: Any, timeout: float) -> Any:
        """Wait for so many seconds at most."""
        self._offer("wait_for")
        return future.wait(timeout=timeout)

    def wait_on(self, future: Any, stream: object) -> Any:
        """Wait for the value, for work on that stream."""
        self._offer("wait_on")
        return future.wait(stream=stream)

    def exception(self, future: Any) -> BaseException | None:
        """Wait for it, and tell the exception."""
        self._offer("exception")
        error: BaseException | None = future.exception()
        return error

    def query(self, future: Any) -> bool:
        """Whether the device work behind the value has finished too."""
        self._offer("query")
        return bool(future.query())

    def synchronize(self, future: Any, timeout: float | None = None) -> Any:
        """Block the host until it has."""
        self._offer("synchronize")
        return future.synchronize(timeout=timeout)

    def synchronized(self, future: Any) -> Any:
        """A future that completes when it has."""
        self._offer("synchronized")
        return future.synchronized()

    async def awaited(self, future: Any) -> Any:
        """Wait in asyncio."""
        self._offer("awaited")
        return await future

    def then(self, future: Any, callback: Any) -> Any:
        """A future of what the callback makes of this one."""
        self._offer("then")
        return future.then(callback)

    def then_async(self, future: Any, callback: Any) -> Any:
        """A future of what the future that the callback returns has."""
        self._offer("then_async")
        return future.then_async(callback)

    def add_done_callback(self, future: Any, callback: Any) -> None:
        """Call back on completion."""
        self._offer("add_done_callback")
        future.add_done_callback(callback)

    def to_host(self, future: Any) -> Any:
        """A future of the value in host memory."""
        self._offer("to_host")
        return future.to_host()

    # -- many of them ------------------------------------------------------------------------------

    def collect_all(self, futures: Sequence[Any]) -> Any:
        """A future of the list of futures."""
        return self._function("collect_all")(futures)

    def wait_all(self, futures: Sequence[Any]) -> Any:
        """The list of values."""
        return self._function("wait_all")(futures)

    def collect_any(self, futures: Sequence[Any]) -> Any:
        """A future of the first to succeed."""
        return self._function("collect_any")(futures)

    def as_completed(self, futures: Sequence[Any], timeout: float | None = None) -> Iterator[Any]:
        """Each, in order of completion."""
        return iter(self._function("as_completed")(futures, timeout=timeout))

    @property
    def CancelledError(self) -> type[Exception]:  # noqa: N802  # it is the name of a class
        """What waiting for a cancelled future raises."""
        found: type[Exception] = self._function("CancelledError")
        return found

    # -- below -------------------------------------------------------------------------------------

    def _imported(self) -> Any:
        return import_module(self.module)

    def _function(self, name: str) -> Any:
        self._offer(name)
        return getattr(self._imported(), name)

    def _offer(self, name: str) -> None:
        # Asked of what gpufut calls it: an adapter that overrides the method does not come here.
        if (why := self.lacks(name)) is not None:
            raise NotOffered(why)


def _parameters(method: Any) -> Iterable[str]:
    try:
        return inspect.signature(method).parameters
    except (TypeError, ValueError):  # written in C, and silent about itself
        return ()


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "?"


class Gpufut(Implementation):
    """gpufut's own futures."""

    def __init__(self, name: str = "gpufut") -> None:
        super().__init__("gpufut", name)

    @contextmanager
    def session(self) -> Iterator[None]:
        """A manager that owns nothing, and holds things until it is told."""
        gpufut = self._imported()
        before = gpufut.set_manager(gpufut.Manager(housekeeping=None))
        try:
            yield
        finally:
            gpufut.set_manager(before)

    def settle(self, bench: Bench) -> None:
        """Sweep."""
        self._imported().get_manager().sweep()

    def held(self) -> int:
        """By the manager's statistics."""
        stats = self._imported().get_manager().stats()
        return sum(each.held for each in stats.values())


class TorchFutures(Implementation):
    """`torch.futures`, on the CPU or on an accelerator that torch knows."""

    must_declare = True
    is_array_library = True
    remarks: ClassVar[Mapping[str, str]] = {
        "callbacks_run_in_the_order_of_registration": (
            "as observed; documented: the order cannot be guaranteed"
        ),
        "arrays_are_found_without_declaring_devices": "documented: devices must be declared",
        "collect_all_fails_early": "documented: complete when all of them are",
        "wait_all_raises_the_first_error_at_once": "documented: it reports the error early",
    }

    def __init__(self) -> None:
        super().__init__("torch.futures")

    def version(self) -> str:
        """torch's."""
        return str(import_module("torch").__version__)

    def works_on(self, device: str) -> bool:
        """Everywhere but on the simulated machine, whose arrays are not torch's."""
        return device != "sim"


_KNOWN: Final = {"gpufut": Gpufut, "torch.futures": TorchFutures}


def load(spec: str) -> Implementation:
    """The implementation called ``gpufut``, ``torch.futures`` or ``module:attribute``.

    The attribute is an `Implementation`, or what makes one when it is called.

    Raises:
        LookupError: There is none, and why.
    """
    found = _KNOWN[spec] if spec in _KNOWN else find(spec)
    made = found if isinstance(found, Implementation) else found()
    if not isinstance(made, Implementation):
        kind = "gpufut.testing.conformance.Implementation"
        raise LookupError(f"{spec} is no {kind}: {made!r}")  # noqa: TRY004  # as for what is absent
    made.spec = spec
    return made


def find(spec: str) -> Any:
    """What ``module:attribute`` names.

    Raises:
        LookupError: Nothing of that name, or it is no such name.
    """
    module, colon, attribute = spec.partition(":")
    if not colon:
        raise LookupError(f"{spec!r} is neither one of {sorted(_KNOWN)} nor module:attribute")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"{spec}: {error}") from error
