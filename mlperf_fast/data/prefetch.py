"""A thread that makes the next few items, and moves them to the device, while the step computes."""

import queue
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")

_END = object()


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


def _produce(source: Iterable, items: queue.Queue, stop: threading.Event, device: torch.device) -> None:
    """Runs in the thread. Knows nothing of the Prefetcher, so that an abandoned one can be collected."""
    last: object = _END
    try:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for item in source:
            items.put(_send(item, device, stream) if stream else (item, None))
            if stop.is_set():
                break
    except BaseException as error:
        last = _Failure(error)
    items.put(last)


def _send(item: Any, device: torch.device, stream: torch.cuda.Stream) -> tuple[Any, torch.cuda.Event]:
    """Starts the copies of one item on the side stream. The source's tensors are pinned: torch's allocator of pinned
    memory hands a block out again only after the copy from it has ended."""
    with torch.cuda.stream(stream):
        sent = _map_tensors(item, lambda tensor: tensor.to(device, non_blocking=True))
        arrived = torch.cuda.Event()
        arrived.record(stream)
    return sent, arrived


def _receive(sent: Any, arrived: torch.cuda.Event, device: torch.device) -> None:
    """Makes the current stream, not the host, wait for the copies, and tells the allocator who uses the tensors."""
    current = torch.cuda.current_stream(device)
    current.wait_event(arrived)
    _map_tensors(sent, lambda tensor: tensor.record_stream(current))


def _map_tensors(item: Any, function: Callable[[torch.Tensor], Any]) -> Any:
    if isinstance(item, torch.Tensor):
        return function(item)
    if isinstance(item, tuple):
        parts = [_map_tensors(part, function) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    return item


def _halt(items: queue.Queue, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    # The garbage collector may call this in the very thread that is to end.
    while thread.is_alive() and thread is not threading.current_thread():
        try:
            items.get(timeout=0.01)  # makes room, so that a blocked put returns
        except queue.Empty:
            continue


class Prefetcher(Generic[T]):
    """Iterates over `source` in a thread of its own, up to `depth` items ahead.

    Items come in the source's order; an exception of the source is raised where its item would have come. The source
    does its heavy work with the GIL released, or this gains nothing. On a CUDA `device` the tensors of an item (a
    tensor, a tuple, a named tuple, or these nested), which should be pinned, are copied there on a stream of their
    own, and the consumer's stream waits for them. Use it in a `with` block, or call `close()`; one that is merely
    dropped ends its thread too. `len()` is the number of items, where `length` was given.
    """

    def __init__(
        self,
        source: Iterable[T],
        *,
        depth: int = 3,
        length: int | None = None,
        device: torch.device | str = "cpu",
    ):
        self._items: queue.Queue = queue.Queue(maxsize=depth)
        self._length = length
        self._device = torch.device(device)
        self._over = False
        stop = threading.Event()
        work = (source, self._items, stop, self._device)
        thread = threading.Thread(target=_produce, args=work, daemon=True, name="prefetch")
        # Also called at interpreter exit, before a daemon thread in native code could outlive the interpreter.
        self._finish = weakref.finalize(self, _halt, self._items, stop, thread)
        thread.start()

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError("this Prefetcher was made without a length")
        return self._length

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._over:
            raise StopIteration
        got = self._items.get()
        if got is _END:
            self.close()
            raise StopIteration
        if isinstance(got, _Failure):
            self.close()
            raise got.error
        item, arrived = got
        if arrived is not None:
            _receive(item, arrived, self._device)
        return item

    def close(self) -> None:
        """Ends the thread and drops what it had made. Safe to call twice."""
        self._over = True
        self._finish()

    def __enter__(self) -> "Prefetcher[T]":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
