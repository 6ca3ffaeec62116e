"""torch, as gpufut sees it: host tensors only, until the CUDA runtime joins.

A tensor in host memory costs one attribute and one look. A tensor on a device, or in pinned memory
that a device may be filling, is found and completes its future with an error that says so: handing
it on unordered would be a silent race.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch

from gpufut.device import Device
from gpufut.errors import DeviceUnavailableError
from gpufut.frameworks import ArrayType, Framework
from gpufut.runtimes import StreamHandle

__all__ = ["ADAPTER"]


def _is_pageable(tensor: torch.Tensor) -> bool:
    # Asking a tensor whether it is pinned would look for a device that has a context. While CUDA
    # sleeps, nothing is pinned.
    return tensor.is_cpu and not (torch.cuda.is_initialized() and tensor.is_pinned())


def _refuse(tensor: torch.Tensor) -> None:
    if tensor.is_meta:
        return
    where = "in pinned host memory" if tensor.is_cpu else f"on {tensor.device}"
    raise DeviceUnavailableError(
        f"the value holds a torch tensor {where}; this version of gpufut hands on torch tensors in "
        "ordinary host memory only, because it cannot order torch's device work yet"
    )


_TENSOR = ArrayType(
    # A build without CUDA pins nothing, so that the tensor's own attribute, in C, is the answer.
    on_host=_is_pageable if torch.backends.cuda.is_built() else attrgetter("is_cpu"),
    locate=_refuse,
)


class TorchAdapter:
    """torch, without devices."""

    def frameworks(self) -> Sequence[Framework]:
        return ()

    def array_type(self, kind: type) -> ArrayType | None:
        return _TENSOR if kind is torch.Tensor else None

    def stream_of(self, stream: object) -> tuple[Device, StreamHandle] | None:
        return None


ADAPTER = TorchAdapter()
