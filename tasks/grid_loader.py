"""Grids in batches for training and screening, read ahead of the network: from shards, or from coefficients on the fly.

Nothing is held in memory but the batches on their way. The order of an epoch follows from the seed and its number, so
a loader that is told where another stopped goes on with the very next batch.
"""

import hashlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.augmentation import random_images
from models.star_bands import StarBands
from models.star_grids import star_grids
from models.training import resolve_device
from tasks.exceptions import InputError
from tasks.shards import ShardReader, read_index
from tasks.workspace import Workspace


@dataclass(frozen=True, eq=False)
class GridBatch:
    """Some materials.

    Attributes
    ----------
    rows
        (n,) rows of the loader's index.
    energies
        (n, bands, mesh, mesh, mesh) float32 on the loader's device, eV relative to E_F.
    """

    rows: NDArray[np.int64]
    energies: Tensor


class GridLoader:
    """Batches of grids, an epoch for each time it is iterated.

    Parameters
    ----------
    material_ids
        Materials wanted, all if None.
    shuffle
        Draw the order anew for each epoch: shards in random order, and the materials of ``window`` shards mixed. Else
        it is the order of the index.
    images
        Give one random image of 24 of each sample, made on the device.
    device
        auto, cpu or cuda. Coefficients become grids there; other grids go there from pinned memory.
    threads
        That read, and on a CPU make grids of coefficients.
    ahead
        Batches made before they are asked for, each in memory.

    Raises
    ------
    MissingStageError, InputError
        As ``tasks.shards.read_grids``.
    """

    def __init__(
        self,
        workspace: Workspace,
        material_ids: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        shuffle: bool = False,
        images: bool = False,
        seed: int = 0,
        window: int = 8,
        device: str = "auto",
        threads: int = 2,
        ahead: int = 2,
    ) -> None:
        self.index = read_index(workspace, material_ids)
        self.batch_size, self.shuffle, self.images, self.seed, self.window = batch_size, shuffle, images, seed, window
        self.device = torch.device(resolve_device(device))
        self._threads, self._ahead = threads, ahead
        self._reader = ShardReader(workspace, kept=4 * window)
        self._positions = self.index["position"].to_numpy()
        self._checksums = self.index["sha256"].to_pylist()
        self._shards = self._positions // self._reader.slots
        self._epoch = self._given = 0

    def __len__(self) -> int:
        """Batches an epoch."""
        return math.ceil(len(self._positions) / self.batch_size)

    def __iter__(self) -> Iterator[GridBatch]:
        """The batches of an epoch that were not given yet."""
        epoch, order = self._epoch, self.order(self._epoch)
        cuts = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        waiting: deque[tuple[NDArray[np.int64], Future[Any]]] = deque()
        with ThreadPoolExecutor(self._threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for rows in cuts[self._given :]:
                    waiting.append((rows, pool.submit(self._read, rows)))
                    if len(waiting) > self._ahead:
                        yield self._next(epoch, *waiting.popleft())
                while waiting:
                    yield self._next(epoch, *waiting.popleft())
            finally:
                for _rows, future in waiting:
                    future.cancel()
        self._epoch, self._given = epoch + 1, 0

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of the index in the order of an epoch, (n_materials,)."""
        rows = np.arange(len(self._positions))
        if not self.shuffle:
            return rows
        generator = np.random.default_rng((self.seed, epoch))
        shards = generator.permutation(np.unique(self._shards))
        mixed = [
            generator.permutation(rows[np.isin(self._shards, shards[start : start + self.window])])
            for start in range(0, len(shards), self.window)
        ]
        return np.concatenate(mixed)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: what it has given of which epoch of what data. JSON can hold it."""
        return {"epoch": self._epoch, "given": self._given, "data": self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader stood; InputError if that one's batches were others."""
        if state["data"] != self._identity():
            raise InputError("This place in an epoch belongs to other materials, another seed or another batch size")
        self._epoch, self._given = int(state["epoch"]), int(state["given"])

    def _identity(self) -> str:
        facts = (self.batch_size, self.shuffle, self.images, self.seed, self.window, self._checksums)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def _read(self, rows: NDArray[np.int64]) -> Tensor | list[StarBands]:
        """What a thread does for a batch: grids, or on a GPU the coefficients that it will make them of."""
        gpu = self.device.type == "cuda"
        if gpu:
            bands = [self._reader.bands(int(self._positions[row])) for row in rows]
            if all(bands):
                return [one for one in bands if one]
        grids = torch.empty((len(rows), *self._reader.shape), dtype=torch.float32, pin_memory=gpu)
        for place, row in enumerate(rows):
            self._reader.grid(int(self._positions[row]), grids[place].numpy())
        return grids

    def _next(self, epoch: int, rows: NDArray[np.int64], future: "Future[Tensor | list[StarBands]]") -> GridBatch:
        found, batch = future.result(), self._given
        if isinstance(found, list):
            energies = star_grids(found, self._reader.shape[0], self._reader.shape[1], self.device)
        else:
            energies = found.to(self.device, non_blocking=True)
        if self.images:
            drawn = int(np.random.default_rng((self.seed, epoch, batch)).integers(2**63))
            energies = random_images(energies, torch.Generator().manual_seed(drawn))
        self._given = batch + 1
        return GridBatch(rows, energies)
