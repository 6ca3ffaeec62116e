"""Accelerators that torch knows, CUDA among them, as their users use them.

Generic calls alone, `torch.accelerator` and `torch.Stream`, so that one bench serves all. What they
do not offer is a gate: for CUDA there is `gpufut.testing.cuda.Gate`, for others whoever asks brings
one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

from gpufut.testing.conformance.bench import ELEMENTS, Bench, Gate

__all__ = ["TorchBench"]


class TorchBench(Bench):
    """An accelerator through torch.

    Args:
        kind: What torch calls the type of device, as ``cuda``.
        gate: Makes a gate for this device; by default there are gates for CUDA alone.

    Raises:
        LookupError: torch has no such accelerator here.
    """

    def __init__(self, kind: str, gate: Callable[[], Gate] | None = None) -> None:
        try:
            import torch
        except ImportError as error:
            raise LookupError(f"torch is not installed, so it has no {kind!r}") from error
        self._torch: Any = torch
        found = torch.accelerator.current_accelerator()
        if found is None or found.type != kind or not torch.accelerator.device_count():
            has = "none" if found is None else f"{found.type!r}"
            raise LookupError(f"torch has no accelerator {kind!r} here; it has {has}")
        self.name = kind
        self._count: int = torch.accelerator.device_count()
        self._make_gate = _cuda_gate if gate is None and kind == "cuda" else gate
        self._all_true: dict[int, Any] = {}
        self._kept: list[Any] = []
        self._before: list[tuple[int, Any]] = []
        self.offers = self._features()

    def _features(self) -> frozenset[str]:
        offers = {"device"}
        if self._make_gate is not None:
            offers.add("gates")
        if self._count > 1:
            offers.add("two-devices")
        try:
            self._torch.empty(1, pin_memory=True)
            offers.add("pinned")
        except RuntimeError:
            pass
        with self.on(self.stream()):
            first = self._raw(0)
            place = first.data_ptr()
            del first
            if self._raw(0).data_ptr() == place:
                offers.add("reuse")
        return frozenset(offers)

    def __enter__(self) -> Self:
        torch = self._torch
        self._before = [
            (index, torch.accelerator.current_stream(index)) for index in range(self._count)
        ]
        for index in range(self._count):  # kernels are loaded before any gate is closed
            truth = torch.ones(ELEMENTS, dtype=torch.bool, device=self._device(index))
            self._all_true[index] = truth
            self.read(self.add_one(self.array(0.0, index)))
        self.finish()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.finish()
        here = self._torch.accelerator.current_device_index()
        for _, stream in self._before:
            self._torch.accelerator.set_stream(stream)
        self._torch.accelerator.set_device_index(here)
        self._kept.clear()

    def declared(self, *devices: int) -> list[Any]:
        return [f"{self.name}:{index}" for index in devices or range(self._count)]

    def stream(self, device: int = 0) -> Any:
        # Of a pool, which hands them out in turn: all of one check are different ones.
        return self._torch.Stream(device=self._device(device))

    @contextmanager
    def _set(self, stream: Any) -> Iterator[None]:
        accelerator = self._torch.accelerator
        device = accelerator.current_device_index()
        before = accelerator.current_stream(stream.device_index)
        accelerator.set_stream(stream)
        try:
            yield
        finally:
            accelerator.set_stream(before)
            accelerator.set_device_index(device)

    def on_library(self, stream: Any, library: int) -> AbstractContextManager[object]:
        return self._set(stream)

    def here(self, device: int = 0, library: int = 0) -> Any:
        return self._torch.accelerator.current_stream(device)

    def name_of(self, stream: Any) -> object:
        return stream.device_index, stream.stream_id

    def idle(self, stream: Any) -> bool:
        return bool(stream.query())

    def empty(self, device: int = 0, library: int = 0) -> Any:
        # Of another number than any that is looked for: what was there before may be just that.
        made = self._raw(device)
        made.fill_(-100.0)
        return made

    def _raw(self, device: int) -> Any:
        torch = self._torch
        return torch.empty(ELEMENTS, dtype=torch.float32, device=self._device(device))

    def fill(self, array: Any, number: float) -> None:
        array.fill_(number)

    def add_one(self, array: Any) -> Any:
        # Not by `array + 1`: there are devices whose additions keep their operands, and that would
        # hide what becomes of memory that nobody keeps.
        torch = self._torch
        made = torch.where(self._all_true[array.device.index], array, array)
        made.add_(1.0)
        return made

    def read(self, array: Any) -> float:
        return self.peek(array.cpu())

    def finish(self) -> None:
        for index in range(self._count):
            self._torch.accelerator.synchronize(index)

    def gate(self) -> Gate:
        if self._make_gate is None:
            raise NotImplementedError
        gate = self._make_gate()
        self._kept.append(gate)  # a stream may look at it later than the check
        return gate

    def gates_expired(self) -> int:
        return sum(bool(getattr(gate, "expired", False)) for gate in self._kept)

    def pinned(self) -> Any:
        torch = self._torch
        return torch.zeros(ELEMENTS, dtype=torch.float32).pin_memory()

    def download(self, pinned: Any, array: Any) -> None:
        pinned.copy_(array, non_blocking=True)

    def peek(self, host: Any) -> float:
        numbers = set(host.tolist())
        return float(numbers.pop()) if len(numbers) == 1 else float("nan")

    def place(self, array: Any) -> object:
        return array.data_ptr()

    def _device(self, index: int) -> Any:
        return self._torch.device(self.name, index)


def _cuda_gate() -> Gate:
    from gpufut.testing.cuda import Gate as CudaGate

    return CudaGate()
