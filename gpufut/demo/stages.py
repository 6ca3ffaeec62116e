"""The four stages, and how a photograph goes from one to the next.

::

    decode ──Future──> upload ──Future──> filter ──Future──> histogram ──Future──> the check
    (host)             (copy)             (denoise, edges)   (histogram, copies back)

A stage takes a future, waits for it *on its own stream*, launches, and hands on the future of what
it launched while the device is still at it. This module knows neither which device that is nor
whether there is one: it knows `World` and `gpufut.Future`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gpufut import Future
from gpufut.demo import filters, photos
from gpufut.demo.photos import Decoded, Photo
from gpufut.demo.world import Ticket, World

__all__ = ["STAGES", "Outputs", "Parcel", "Stage", "advance", "first_parcel", "label"]


@dataclass(frozen=True, slots=True)
class Filtered:
    """Two arrays on the device."""

    denoised: Any
    edges: Any


@dataclass(frozen=True, slots=True)
class Outputs:
    """The results, in pinned memory of the host."""

    denoised: Any
    edges: Any
    histogram: Any


@dataclass(frozen=True, slots=True)
class Parcel:
    """A photograph on its way.

    *future* is what the last stage handed on, *handoffs* how many futures were taken over from
    another stage so far, *source* the decoded picture, which the check at the end needs too.
    """

    photo: Photo
    future: Future[Any]
    ticket: Ticket
    source: Future[Decoded]
    handoffs: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """A name, and what the stage launches for a value: returns at once, kernels running.

    *actions* are the labels' first parts, in the order in which the stage launches them.
    """

    name: str
    work: Callable[[World, Any, str], Any]
    actions: tuple[str, ...]


def label(action: str, name: str) -> str:
    """What the timeline calls *action* for the photograph *name*."""
    return f"{action} {name}"


def upload(world: World, decoded: Decoded, name: str) -> Any:
    pixels = world.empty(decoded.grey.shape, np.uint8)
    world.copy(pixels, decoded.grey, label=label("upload", name))
    return pixels


def filter_pixels(world: World, pixels: Any, name: str) -> Filtered:
    denoised = world.empty(pixels.shape, np.float32)
    edges = world.empty(pixels.shape, np.float32)
    world.launch("denoise", [pixels], [denoised], label=label("denoise", name))
    world.launch("edges", [denoised], [edges], label=label("edges", name))
    return Filtered(denoised, edges)


def histogram(world: World, filtered: Filtered, name: str) -> Outputs:
    counts = world.empty((filters.BINS,), np.uint32)
    world.launch("histogram", [filtered.edges], [counts], label=label("histogram", name))

    def copy_back(array: Any, what: str) -> Any:
        result = world.pinned(array.shape, array.dtype)
        world.copy(result, array, label=label(f"copy back {what}", name))
        return result

    return Outputs(
        denoised=copy_back(filtered.denoised, "denoised"),
        edges=copy_back(filtered.edges, "edges"),
        histogram=copy_back(counts, "histogram"),
    )


STAGES = (
    Stage("upload", upload, ("upload",)),
    Stage("filter", filter_pixels, ("denoise", "edges")),
    Stage(
        "histogram",
        histogram,
        ("histogram", "copy back denoised", "copy back edges", "copy back histogram"),
    ),
)


def first_parcel(world: World, photo: Photo, max_side: int) -> Parcel:
    """The first stage: decode *photo* on the host. A broken one makes a failed future."""
    future: Future[Decoded] = Future()
    began = world.ticket()
    try:
        decoded = photos.decode(photo, max_side)
        world.decoded(decoded.source_pixels, since=began, label=label("decode", photo.name))
        future.set_result(decoded)
    except Exception as error:  # for whoever asks for the photograph at the end
        future.set_exception(error)
    return Parcel(photo, future, world.ticket(), source=future)


def take(future: Future[Any]) -> Any:
    """The hand-over: the value, ready for work on this thread's current stream, at once."""
    return future.wait()


def advance(world: World, stage: Stage, parcel: Parcel, *, synchronise: bool = False) -> Parcel:
    """One stage for one photograph: take the future, launch, hand on a future.

    Args:     synchronise: block until the device has done it, as programs without futures do.
    Streams:  launches on the current stream of the calling thread.

    An error, of this stage or of an earlier one, goes on in the future.
    """
    world.resume(parcel.ticket)
    future: Future[Any] = Future()
    handoffs = parcel.handoffs
    try:
        value = take(parcel.future)
        handoffs += 1
        future.set_result(stage.work(world, value, parcel.photo.name))
        if synchronise:
            world.synchronise(future)
    except Exception as error:
        # When it was the synchronise that failed, the future has its value already; whoever
        # waits for that value meets the device's error again.
        future.try_set_exception(error)
    return replace(parcel, future=future, ticket=world.ticket(), handoffs=handoffs)
