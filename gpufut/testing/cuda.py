"""Device work on any CUDA stream, by the driver alone: a delay, and a gate that the host opens.

Two kernels in PTX, which the driver translates for the device that is there. No compiler is needed,
and no array library, so that they work on the streams of all of them. Not for ROCm.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import byref, c_int, c_uint64, c_void_p, cast
from typing import Any, Final

from gpufut import driver, runtimes
from gpufut.streams import resolve

__all__ = ["Gate", "delay"]

# As LLVM writes it for kernels that look at %globaltimer, a clock in nanoseconds. The gate's words
# are in page-locked memory of the host: at 0 it is opened, at 4 the device says that it gave up.
_PTX: Final = b"""
.version 6.3
.target sm_75
.address_size 64

.visible .entry gpufut_delay(.param .u64 nanoseconds)
{
	.reg .pred 	%p<2>;
	.reg .b64 	%rd<5>;

	ld.param.u64 	%rd1, [nanoseconds];
	mov.u64 %rd2, %globaltimer;
$L__delay:
	mov.u64 %rd3, %globaltimer;
	sub.s64 	%rd4, %rd3, %rd2;
	setp.lt.u64 	%p1, %rd4, %rd1;
	@%p1 bra 	$L__delay;
	ret;
}

.visible .entry gpufut_gate(.param .u64 words, .param .u64 nanoseconds)
{
	.reg .pred 	%p<3>;
	.reg .b32 	%r<2>;
	.reg .b64 	%rd<6>;

	ld.param.u64 	%rd1, [words];
	ld.param.u64 	%rd2, [nanoseconds];
	mov.u64 %rd3, %globaltimer;
$L__gate:
	ld.volatile.global.u32 	%r1, [%rd1];
	setp.ne.u32 	%p1, %r1, 0;
	@%p1 bra 	$L__end;
	mov.u64 %rd4, %globaltimer;
	sub.s64 	%rd5, %rd4, %rd3;
	setp.lt.u64 	%p2, %rd5, %rd2;
	@%p2 bra 	$L__gate;
	st.volatile.global.u32 	[%rd1+4], 1;
$L__end:
	ret;
}
\0"""

_GATES: Final = 4096  # of a page
_WORDS: Final = 2  # of a gate
_PORTABLE_AND_MAPPED: Final = 3  # CU_MEMHOSTALLOC_PORTABLE | CU_MEMHOSTALLOC_DEVICEMAP


class _Kernels:
    """The two kernels on one device. Made in a context of the device's; never given back."""

    def __init__(self, library: Any) -> None:
        self._library = library
        module = c_void_p()
        self.call("cuModuleLoadData", byref(module), _PTX)
        self._functions = {name: self._function(module, name) for name in (b"delay", b"gate")}

    def _function(self, module: c_void_p, name: bytes) -> c_void_p:
        function = c_void_p()
        self.call("cuModuleGetFunction", byref(function), module, b"gpufut_" + name)
        return function

    def call(self, name: str, *arguments: object) -> None:
        """Call the driver, and raise if it fails."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise driver.failure(status, "error", name)

    def launch(self, name: bytes, stream: int, *arguments: c_uint64) -> None:
        """Enqueue a kernel of one thread."""
        pointers = (c_void_p * len(arguments))(
            *(cast(ctypes.pointer(each), c_void_p) for each in arguments)
        )
        shape = (1, 1, 1, 1, 1, 1)
        self.call(
            "cuLaunchKernel", self._functions[name], *shape, 0, c_void_p(stream), pointers, None
        )

    def warm_up(self, stream: int) -> None:
        """Launch each once, before there is a gate: that may load it, and loading may wait."""
        words = _take_words(self)
        self.launch(b"gate", stream, c_uint64(ctypes.addressof(words)), c_uint64(0))
        self.launch(b"delay", stream, c_uint64(0))
        self.call("cuStreamSynchronize", c_void_p(stream))


# Guards what follows; the driver is called while it is held, in setting up. Re-entrant, because a
# signal handler may hand on arrays too.
_lock = threading.RLock()
_kernels: dict[int, _Kernels] = {}
_pages: list[int] = []  # addresses, of which only the last one has gates to give away
_taken = 0


def _forget() -> None:
    global _lock, _taken
    _lock = threading.RLock()
    _kernels.clear()
    _pages.clear()
    _taken = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _kernels_of(device: int) -> _Kernels:
    found = _kernels.get(device)
    if found is not None:
        return found
    with _lock:
        found = _kernels.get(device)
        if found is None:
            if driver.is_rocm():
                raise RuntimeError("these kernels are for CUDA: there are none for ROCm")
            stream = driver.create_stream(device, 0)
            found = driver.on(device, driver.relaxed, _Kernels, driver.open_library())
            driver.on(device, driver.relaxed, found.warm_up, stream)
            _kernels[device] = found
    return found


def delay(device: int, stream: int, seconds: float) -> None:
    """Keep a stream busy for a while.

    Args:     device: its index. stream: the raw handle; 1 and 2 are the default streams. seconds:
              of the device's clock.
    """
    kernels = _kernels_of(device)
    runtime = runtimes.get("cuda")
    if not runtime.can_be_captured(stream):
        # A default stream: this raises if using it would break somebody's capture.
        runtime.stream_query(device, stream)
    driver.on(device, kernels.launch, b"delay", stream, c_uint64(int(seconds * 1e9)))


class Gate:
    """Holds streams until the host opens it; as a mistake must not hang, after a while by itself.

    Args:     seconds: for which a stream is held at most.
    Threads:  every method, from any thread.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        self._nanoseconds = int(seconds * 1e9)
        self._is_open = False
        # Two integers, once there is a device on which to have them; those of whoever came first.
        self._claims: list[Any] = []

    def hold(self, stream: Any) -> None:
        """Let nothing that is launched on the stream from now on run before the gate opens.

        Args:     stream: a CUDA stream of any library, or anything with ``__cuda_stream__``.
        """
        named = resolve(stream)
        device = named.device.index
        kernels = _kernels_of(device)
        if not self._claims:
            self._claims.append(driver.on(device, driver.relaxed, _taken_words, kernels))
        words = self._claims[0]
        if self._is_open:  # looked at after claiming: `open` sets it before it looks for a claim
            words[0] = 1
        driver.on(
            device, kernels.launch, b"gate", named.handle,
            c_uint64(ctypes.addressof(words)), c_uint64(self._nanoseconds),
        )  # fmt: skip

    def open(self) -> None:
        """Let the streams go on, for good."""
        self._is_open = True
        for words in self._claims[:1]:
            words[0] = 1

    @property
    def expired(self) -> bool:
        """Whether a stream went on although nobody had opened the gate."""
        return any(words[1] != 0 for words in self._claims[:1])


def _taken_words(kernels: _Kernels) -> Any:
    with _lock:
        return _take_words(kernels)


def _take_words(kernels: _Kernels) -> Any:
    """A gate's words, both 0, that nobody else has or will ever get. With the lock held.

    A stream may look at them at any later time, and to allocate or to free page-locked memory may
    wait for the device, which may be waiting behind a gate. So there are thousands at once.
    """
    global _taken
    if not _pages or _taken == _GATES:
        start = c_void_p()
        nbytes = 4 * _WORDS * _GATES
        kernels.call("cuMemHostAlloc", byref(start), nbytes, _PORTABLE_AND_MAPPED)
        ctypes.memset(start.value or 0, 0, nbytes)
        _pages.append(start.value or 0)
        _taken = 0
    address = _pages[-1] + 4 * _WORDS * _taken
    _taken += 1
    return (c_int * _WORDS).from_address(address)
