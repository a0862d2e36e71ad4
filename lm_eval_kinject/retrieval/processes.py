"""Several processes that embed the shards of one index, with a GPU each in turn where there are GPUs.

What it is for: `Processes` does the work of `index.build_index` that takes long, on all of a machine. What it does not
do: decide what a shard is, name or assemble an index, or hold its lock: all that stays with the process that builds.

The one idea: batches are made within a shard, and a shard is the same for any number of processes. So each is embedded
whole by one of them, with the threads that the building process has (how a sum is split decides its last bits), and
which one that was can't be seen. Whoever is free takes the next one; chunks travel to it, vectors go to the disk.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lm_eval_kinject.log import log
from lm_eval_kinject.records import Chunk
from lm_eval_kinject.retrieval.encoders import Encoder
from lm_eval_kinject.retrieval.index import Work, embed_shard

__all__ = ["Processes", "devices"]

_encoder: Encoder | None = None  # of a helping process


@dataclass(frozen=True)
class Processes:
    """Processes that help to build an index; see `index.Helpers`.

    Attributes:
        count: how many at most.
        load: loads the encoder in each of them, called with ``device=``; it must be picklable.
        devices: the processes' devices, in turn.
    """

    count: int
    load: Callable[..., Encoder]
    devices: Sequence[str]

    def __call__(self, work: Work, shards: int, folder: Path) -> Generator[int, None, None]:
        """Has all shards embedded and yields their numbers, in the order in which they are finished.

        Raises:
            BrokenProcessPool: a process died; the others are ended, and finished shards are there.
        """
        count = min(self.count, shards)
        if count < 2:  # one more process would only load the encoder once more
            return
        import torch

        threads = torch.get_num_threads()
        if not self._on_gpus() and count * threads > (os.cpu_count() or 1):
            log.warning(
                "%d processes of %d threads each share %d processors: set OMP_NUM_THREADS=%d; vectors may differ in "
                "their last bits from those of another number of threads",
                *(count, threads, os.cpu_count() or 1, max(1, (os.cpu_count() or 1) // count)),
            )
        # Fresh processes: a forked one could use neither CUDA nor threads.
        context = multiprocessing.get_context("spawn")
        ends, life = context.Pipe(duplex=False)
        turn = context.Value("i", 0)
        pool = ProcessPoolExecutor(count, context, _begin, (self.load, self.devices, turn, threads, ends))
        running: dict[Future[None], int] = {}
        try:
            while True:
                for number, chunks in islice(work, 2 * count - len(running)):  # all at once would be all texts
                    running[pool.submit(_embed, chunks, folder, number)] = number
                if not running:
                    return
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    ended.result()
                    yield running.pop(ended)
        finally:
            life.close()
            pool.shutdown(cancel_futures=True)

    def _on_gpus(self) -> bool:
        return not self.devices[0].startswith("cpu")


def devices(device: str) -> list[str]:
    """A process's device each, in turn: all GPUs where the building process takes any, else its own."""
    if device != "cuda":
        return [device]
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def _begin(load: Callable[..., Encoder], devices: Sequence[str], turn: Any, threads: int, ends: Any) -> None:
    """Of a helping process: its encoder."""
    import torch

    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the building process, which then ends this one
    threading.Thread(target=_end_with, args=(ends,), daemon=True).start()
    torch.set_num_threads(threads)
    with turn.get_lock():
        number, turn.value = turn.value, turn.value + 1
    _encoder = load(device=devices[number % len(devices)])


def _end_with(ends: Any) -> None:
    """Ends this process once a pipe's other end is closed: by the building process, or by the system if it died."""
    with contextlib.suppress(EOFError, OSError):
        ends.recv()
    os._exit(1)


def _embed(chunks: Sequence[Chunk], folder: Path, number: int) -> None:
    if _encoder is not None:
        embed_shard(_encoder, chunks, folder, number)
