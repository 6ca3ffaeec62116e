"""Where the interpreter looks whether another thread wants to run, or a signal has come.

It does so on entering a function and on going on with a generator, after calls of what is not
written in Python, and where a loop begins again: CPython 3.11, 3.12 and 3.13. A test asks the
interpreter itself whether this is so.
"""

from __future__ import annotations

import gc
import opcode
import sys
from _thread import get_ident
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

from gpufut import sim

__all__ = ["forget", "prepare", "traced"]

monitoring: Final[Any] = getattr(sys, "monitoring", None)  # from CPython 3.12 on

Watches = Callable[[CodeType], bool]
Place = Callable[[FrameType, int], None]
Line = Callable[[FrameType], None]


def _codes(*names: str) -> frozenset[int]:
    return frozenset(opcode.opmap[name] for name in names if name in opcode.opmap)


_CALLS: Final = _codes("CALL", "CALL_KW", "CALL_FUNCTION_EX")
_BACK: Final = _codes("JUMP_BACKWARD")
_BACK_IF: Final = _codes(
    *(f"POP_JUMP_BACKWARD_IF_{what}" for what in ("TRUE", "FALSE", "NONE", "NOT_NONE"))
)
_RESUME: Final = _codes("RESUME")
_EXTENDED_ARG: Final = _codes("EXTENDED_ARG")
# These may call repr(), which looks for signals, but not for other threads.
_FORMATS: Final = _codes("FORMAT_VALUE", "FORMAT_SIMPLE", "FORMAT_WITH_SPEC")

# What an instruction does when it has been executed.
_CALL: Final = 1  # looks, unless it has called a function in Python: that one has looked on entry
_LOOP: Final = 2  # looks
_LOOP_IF: Final = 3  # looks if it has jumped
_FORMAT: Final = 4  # looks for signals
_ENTRY: Final = 5  # has looked, before anybody could trace it
_NOTHING: Final = -1  # an offset at which nothing looks


def _kinds_of(code: CodeType) -> bytes:
    """What the instruction at each offset does; at the end, what none does."""
    text = code.co_code
    kinds = bytearray(len(text) + 1)
    for offset in range(0, len(text), 2):
        at = offset
        while text[at] in _EXTENDED_ARG:  # of what follows, and traced in its stead
            at += 2
        if text[at] in _CALLS:
            kinds[offset] = _CALL
        elif text[at] in _BACK:
            kinds[offset] = _LOOP
        elif text[at] in _BACK_IF:
            kinds[offset] = _LOOP_IF
        elif text[at] in _FORMATS:
            kinds[offset] = _FORMAT
        elif text[at] in _RESUME and text[at + 1] & 3 < 2:  # not after `yield from` and `await`
            kinds[offset] = _ENTRY
    return bytes(kinds)


_SIMULATOR: Final = str(Path(sim.__file__).parent)


def _is_in_simulator(frame: FrameType | None) -> bool:
    """Whether this was called in there, where the machine's lock is held.

    The machine is not watched: what it does is one step. So it must not be left in the middle.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith(_SIMULATOR):
            return True
        frame = frame.f_back
    return False


_kinds: Final[dict[CodeType, bytes]] = {}


class _Tracer:
    """Finds the places of one thread, in the functions that are watched."""

    def __init__(self, watches: Watches, place: Place, line: Line | None, signals: bool) -> None:
        self.line = line
        self.returned = 0  # id of the frame to which a watched function has just returned
        self._watches = watches
        self._place = place
        self._signals = signals
        self._known: dict[CodeType, bytes | None] = {}

    def enter(self, frame: FrameType) -> bytes | None:
        """A function begins, or a generator goes on. What its code does, or None: not watched."""
        code = frame.f_code
        try:
            kinds = self._known[code]
        except KeyError:
            kinds = self._known[code] = self._kinds_if_watched(code)
        if kinds is None or (code.co_name == "__del__" and _is_in_simulator(frame)):
            return None
        if kinds[frame.f_lasti] == _ENTRY:
            self._place(frame, frame.f_lasti)
        return kinds

    def look(self, frame: FrameType, kind: int, last: int, now: int) -> None:
        """An instruction of that kind was executed, at offset *last*; *now* is the next one's."""
        if (
            (kind == _CALL and self.returned != id(frame))
            or kind == _LOOP
            or (kind == _LOOP_IF and now < last)
            or (kind == _FORMAT and self._signals)
        ):
            self._place(frame, last)
        self.returned = 0

    def _kinds_if_watched(self, code: CodeType) -> bytes | None:
        if not self._watches(code):
            return None
        if code not in _kinds:
            _kinds[code] = _kinds_of(code)
        return _kinds[code]


def _settrace(tracer: _Tracer) -> Callable[[FrameType, str, object], Any]:
    """What `sys.settrace` takes."""

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        kinds = tracer.enter(frame)
        if kinds is None:
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = tracer.line is not None
        before = _NOTHING  # the offset of the instruction that was executed last

        def step(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal before
            if event == "opcode":
                last, before = before, frame.f_lasti
                if kinds[last]:
                    tracer.look(frame, kinds[last], last, before)
                else:
                    tracer.returned = 0
            elif event == "return":
                tracer.returned = id(frame.f_back)
            elif event == "exception":
                before = _NOTHING  # what raises does not look
            elif tracer.line is not None:
                tracer.line(frame)
            return step

        return step

    return trace


class _Monitor:
    """The same by `sys.monitoring`, from CPython 3.12 on, where `sys.settrace` comes too late to
    trace the instructions of what has just been entered.

    Events come from all threads, so `tracers` says whose they are. Each has its watched frames,
    innermost last: the code, what it does, and the offset of the instruction executed last.
    """

    def __init__(self) -> None:
        self.tracers: dict[int, tuple[_Tracer, list[tuple[CodeType, bytes, list[int]]]]] = {}
        self._prepared: dict[int, CodeType] = {}  # by id: equal code of two functions is two
        self._begun = False

    def prepare(self, watches: Watches) -> None:
        """Have the interpreter tell of what happens in the watched functions.

        Before they are entered: what runs already would not change any more.
        """
        events = monitoring.events
        if not self._begun:
            self._begin()
        wanted = (
            events.PY_START | events.PY_RESUME | events.PY_RETURN | events.PY_YIELD
            | events.INSTRUCTION | events.LINE
        )  # fmt: skip
        for ident, code in _all_codes().items():
            if ident not in self._prepared and watches(code):
                self._prepared[ident] = code
                monitoring.set_local_events(_TOOL, code, wanted)

    def _begin(self) -> None:
        self._begun = True
        monitoring.use_tool_id(_TOOL, "tests.threads")
        events = monitoring.events
        own = {
            events.PY_START: self._enter,
            events.PY_RESUME: self._enter,
            events.PY_THROW: self._enter,
            events.PY_RETURN: self._leave,
            events.PY_YIELD: self._leave,
            events.PY_UNWIND: self._leave,
            events.RAISE: self._raise,
            events.INSTRUCTION: self._step,
            events.LINE: self._line,
        }
        for event, callback in own.items():
            monitoring.register_callback(_TOOL, event, callback)
        monitoring.set_events(_TOOL, events.PY_THROW | events.PY_UNWIND | events.RAISE)

    def forget(self) -> None:
        """Undo it all."""
        if self._begun:
            monitoring.set_events(_TOOL, 0)
            for code in self._prepared.values():
                monitoring.set_local_events(_TOOL, code, 0)
            self._prepared.clear()
            self._begun = False
            monitoring.free_tool_id(_TOOL)

    def _enter(self, code: CodeType, offset: int, *_: object) -> None:
        found = self.tracers.get(get_ident())
        if found is not None and id(code) in self._prepared:
            tracer, frames = found
            kinds = tracer.enter(sys._getframe(1))
            frames.append((code, kinds or b"", [_NOTHING]))

    def _leave(self, code: CodeType, offset: int, *_: object) -> None:
        found = self.tracers.get(get_ident())
        if found is not None and found[1] and found[1][-1][0] is code:
            tracer, frames = found
            if frames.pop()[1]:
                tracer.returned = id(sys._getframe(1).f_back)

    def _raise(self, code: CodeType, offset: int, *_: object) -> None:
        found = self.tracers.get(get_ident())
        if found is not None and found[1] and found[1][-1][0] is code:
            found[1][-1][2][0] = _NOTHING

    def _step(self, code: CodeType, offset: int) -> None:
        found = self.tracers.get(get_ident())
        if found is not None and found[1] and found[1][-1][0] is code:
            tracer, frames = found
            _, kinds, before = frames[-1]
            if kinds:
                last, before[0] = before[0], offset
                if kinds[last]:
                    tracer.look(sys._getframe(1), kinds[last], last, offset)
                else:
                    tracer.returned = 0

    def _line(self, code: CodeType, number: int) -> None:
        found = self.tracers.get(get_ident())
        if found is not None and found[1] and found[1][-1][0] is code:
            tracer, frames = found
            if tracer.line is not None and frames[-1][1]:
                tracer.line(sys._getframe(1))


_TOOL: Final = 4  # of the numbers that the interpreter has, one that nobody is known to use
_monitor: Final = _Monitor()


def _all_codes() -> dict[int, CodeType]:
    """The code of every function that there is, by id."""
    found: dict[int, CodeType] = {}
    left = [each.__code__ for each in gc.get_objects() if isinstance(each, FunctionType)]
    while left:
        code = left.pop()
        if id(code) not in found:
            found[id(code)] = code
            left += [each for each in code.co_consts if isinstance(each, CodeType)]
    return found


@contextmanager
def traced(
    watches: Watches, place: Place, line: Line | None = None, signals: bool = False
) -> Iterator[None]:
    """Call *place* wherever the interpreter looks in the calling thread, in watched functions.

    Args:
        watches: Whether a function is watched.
        place: Called with the frame, and the offset of the instruction that has looked. What it
            raises is raised there.
        line: Called before each line.
        signals: Also where it looks for signals only.
    """
    tracer = _Tracer(watches, place, line, signals)
    if sys.version_info < (3, 12):
        sys.settrace(_settrace(tracer))
        try:
            yield
        finally:
            sys.settrace(None)
    else:
        _monitor.tracers[get_ident()] = tracer, []
        try:
            yield
        finally:
            del _monitor.tracers[get_ident()]


def prepare(watches: Watches) -> None:
    """To be called before `traced`, once the watched functions exist, with no thread in them."""
    if sys.version_info >= (3, 12):
        _monitor.prepare(watches)


def forget() -> None:
    """Nothing is watched any more: all runs as fast as before."""
    if sys.version_info >= (3, 12):
        _monitor.forget()
