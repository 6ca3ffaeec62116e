"""What kernels ask of a GPU that Numba does not offer, and what stands in for it in the simulator.

Numba's simulator runs kernels in Python on the host, where there is no global timer and no pause.
These names are all that differs between the two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numba import config, cuda

__all__ = [
    "MOST_BLOCKS", "PLANE", "SIMULATED", "THREADS", "function", "kernel", "now", "pause",
    "read_shared",
]  # fmt: skip

SIMULATED: Final = bool(config.ENABLE_CUDASIM)

if not hasattr(np, "row_stack"):
    # numba-cuda up to 0.30 asks for this name when it first compiles; NumPy 2.5 has dropped it.
    vars(np)["row_stack"] = np.vstack

# Kernels work with any grid. The simulator starts a thread of the host for each of the device's, so
# there it is as small as can be with several blocks of several threads.
THREADS: Final = 4 if SIMULATED else 256
PLANE: Final = (2, 2) if SIMULATED else (32, 8)  # threads of a block that works on a picture
MOST_BLOCKS: Final = 3 if SIMULATED else 1024


def kernel(body: Callable[..., None]) -> Any:
    """Make *body* a kernel, compiled for the types of its arguments at its first launch."""
    return cuda.jit(body)


def function(body: Callable[..., Any]) -> Any:
    """Make *body* a function that kernels may call."""
    return cuda.jit(body, device=True)


if SIMULATED:

    def now() -> int:
        """Nanoseconds on a clock that all kernels share."""
        return time.perf_counter_ns()

    def pause() -> None:
        """Wait a moment before looking again."""
        time.sleep(20e-6)

    def read_shared(words: Any, index: int) -> int:
        """A word that the host may be writing, as it is now."""
        return int(words[index])

else:
    from llvmlite import ir
    from numba.cuda import types
    from numba.cuda.extending import intrinsic

    def _intrinsic(define: Callable[..., Any]) -> Any:
        return intrinsic(define)

    @_intrinsic
    def now(_typing: Any) -> Any:
        """Nanoseconds on a clock that all kernels share: the global timer, as signed 64 bits."""

        def build(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
            returns = ir.FunctionType(ir.IntType(64), [])
            # A side effect, so that it is read anew wherever it is written.
            read = ir.InlineAsm(returns, "mov.u64 $0, %globaltimer;", "=l", side_effect=True)
            return builder.call(read, [])

        return types.int64(), build

    @function
    def pause() -> None:
        """Wait a moment before looking again: polling crosses the bus, which others use too."""
        cuda.nanosleep(500)

    @_intrinsic
    def read_shared(_typing: Any, words: Any, index: Any) -> Any:
        """A word that the host may be writing, as it is now: of a contiguous int32 array.

        Numba's own ways to read will not do. A plain read may be served by a register or by a cache
        that nobody refreshes. `cuda.ldcv` is assembly without side effects, which the compiler
        moves out of a loop. Atomics, such as adding 0, *write*: on host memory they are not atomic
        for the host, and could put the old word back on top of what it has just written.
        """

        def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            address = builder.gep(array.data, [arguments[1]])
            returns = ir.FunctionType(ir.IntType(32), [address.type])
            # From memory each time, for the whole system to see; what the host wrote before this
            # word is then visible too.
            text, operands = "ld.acquire.sys.b32 $0, [$1];", "=r,l,~{memory}"
            read = ir.InlineAsm(returns, text, operands, side_effect=True)
            return builder.call(read, [address])

        return types.int32(words, index), build
