"""The policy's weights in shared memory: one writer (trainer rank 0), any number of readers on the node.

The file has no name: it lives in an anonymous memory file that readers open through the writer's process, so it
disappears with the writer and those who read it, however they die. A tensor is copied once, by the writer, and only
when it has changed. Every transfer carries a version and a checksum of the whole version, and each reader answers with
both: an engine that serves other weights than the trainer sent cannot go unnoticed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import xxhash
from torch import Tensor

from workers.records import WeightEntry, WeightManifest

ALIGNMENT = 64
ADAPTER_PREFIX = "base_model.model."
"""Of every tensor's name in an adapter's file."""


class WeightSyncError(RuntimeError):
    """Weights did not arrive as they were sent."""


def tensor_checksum(tensor: Tensor) -> int:
    """XXH3 of the tensor's bytes in host memory: cheap next to the copy, and it notices order and place.

    >>> tensor_checksum(torch.tensor([1.0, 2.0])) == tensor_checksum(torch.tensor([2.0, 1.0]))
    False
    """
    return xxhash.xxh3_64_intdigest(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


class Checksum:
    """Accumulates the checksum of a set of named tensors, whatever their order."""

    def __init__(self) -> None:
        self.parts: dict[str, int] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        self.parts[name] = tensor_checksum(tensor)

    def hexdigest(self) -> str:
        listing = "\n".join(f"{name} {part:016x}" for name, part in sorted(self.parts.items()))
        return hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()


# ----------------------------------------------------------------------------- writing


class SharedWeights:
    """The writer's side: an anonymous memory file that is reused for every version."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("heliostat-weights")
        self._map: mmap.mmap | None = None
        self._entries: dict[str, WeightEntry] = {}
        self._checksum = Checksum()

    def write(
        self,
        weights: Iterable[tuple[str, Tensor]],
        *,
        version: int,
        num_bytes: int,
        adapter: str = "",
        rest_stays: bool = False,
    ) -> WeightManifest:
        """Copy every tensor in, once. `num_bytes` bounds the whole, alignment included; `adapter`: see the manifest.

        `rest_stays`: what was written before and is not among these tensors belongs to this version, too.
        """
        memory = _bytes_of(self._room_for(num_bytes))
        if not rest_stays:
            self._entries, self._checksum = {}, Checksum()
        # Vectors lie at the end: between matrices that engines fuse, which they can then take as one, lies nothing.
        front, back = 0, num_bytes
        for name, tensor in weights:
            room = _padded(tensor)
            if rest_stays:
                offset = self._entries[name].offset
            elif tensor.dim() > 1:
                offset, front = front, front + room
            else:
                offset = back = back - room
            if front > back:
                raise ValueError(f"{name} finds no room: {num_bytes} bytes were said to be enough for all weights")
            entry = _entry(name, tensor, offset=offset, version=version)
            target = _view(memory, entry)
            target.copy_(tensor.detach())
            self._entries[name] = entry
            self._checksum.add(name, target)
        return WeightManifest(
            version=version,
            path=f"/proc/{os.getpid()}/fd/{self._descriptor}",
            entries=tuple(self._entries.values()),
            checksum=self._checksum.hexdigest(),
            adapter=adapter,
        )

    def _room_for(self, num_bytes: int) -> mmap.mmap:
        if self._map is None or len(self._map) < num_bytes:
            # Pages that a copy is the first to touch make it ten times slower than pages that are asked for at once.
            os.posix_fallocate(self._descriptor, 0, max(num_bytes, ALIGNMENT))
            self._map = _mapped(self._descriptor)
        return self._map


def padded_bytes(tensors: Iterable[Tensor]) -> int:
    """Room that `SharedWeights.write` needs for tensors of these shapes."""
    return sum(_padded(tensor) for tensor in tensors)


def _padded(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _entry(name: str, tensor: Tensor, *, offset: int, version: int) -> WeightEntry:
    return WeightEntry(
        name=name,
        dtype=str(tensor.dtype).removeprefix("torch."),
        shape=tuple(tensor.shape),
        offset=offset,
        num_bytes=tensor.numel() * tensor.element_size(),
        since=version,
    )


# ----------------------------------------------------------------------------- reading


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrived:
    """One version of the weights, as it was sent."""

    tensors: Mapping[str, Tensor]
    """All of them, as views of the shared memory: copy them before the writer's next version."""
    changed: frozenset[str]
    """Names of those that the reader has not read before."""
    checksum: str
    """Of all tensors: of those that changed as they lie there, of the others as they were when they were read."""


class WeightReader:
    """A reader that stays: it keeps the memory mapped, and knows what it has read."""

    def __init__(self) -> None:
        self._file: tuple[str, int, int] | None = None
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._held: dict[str, tuple[int, int]] = {}
        """Of each tensor the version it was written for, and its checksum."""

    @contextmanager
    def reading(self, manifest: WeightManifest) -> Iterator[Arrived]:
        """What the reader takes over while the block lasts; after a block that fails it has nothing.

        Raises WeightSyncError, before anything is taken over, when what lies there is not what was written.
        """
        memory = self._mapped(manifest.path)
        tensors = {entry.name: _view(memory, entry) for entry in manifest.entries}
        held, checksum = self._held, Checksum()
        unchanged = {
            entry.name
            for entry in manifest.entries
            if entry.since < manifest.version and held.get(entry.name, (None, 0))[0] == entry.since
        }
        for name, tensor in tensors.items():
            if name in unchanged:
                checksum.parts[name] = held[name][1]
            else:
                checksum.add(name, tensor)
        arrived = checksum.hexdigest()
        if arrived != manifest.checksum:
            raise WeightSyncError(
                f"weights of version {manifest.version}: the trainer sent checksum {manifest.checksum}, "
                f"what arrived has {arrived}"
            )
        self._held = {}
        yield Arrived(tensors=tensors, changed=frozenset(tensors.keys() - unchanged), checksum=arrived)
        self._held = {entry.name: (entry.since, checksum.parts[entry.name]) for entry in manifest.entries}

    def _mapped(self, path: str) -> Tensor:
        status = os.stat(path)
        file = (path, status.st_ino, status.st_size)
        if file != self._file:
            descriptor = os.open(path, os.O_RDWR)
            try:
                self._memory = _bytes_of(_mapped(descriptor))
            finally:
                os.close(descriptor)
            if self._file is None or file[:2] != self._file[:2]:
                self._held = {}  # another writer counts versions of its own
            self._file = file
        return self._memory


def read_weights(manifest: WeightManifest) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, as a view of the shared memory: copy it before the writer's next version.

    Raises WeightSyncError before the first tensor when what lies there is not what was written.
    """
    with WeightReader().reading(manifest) as arrived:
        yield from arrived.tensors.items()


def is_of_adapter(name: str) -> bool:
    """Whether a manifest's entry is a tensor of its adapter, by PEFT's own naming."""
    return name.startswith(ADAPTER_PREFIX)


def has_base(manifest: WeightManifest) -> bool:
    return not all(is_of_adapter(entry.name) for entry in manifest.entries)


def base_of(arrived: Arrived) -> dict[str, Tensor]:
    """Its tensors without those of an adapter."""
    return {name: tensor for name, tensor in arrived.tensors.items() if not is_of_adapter(name)}


def adapter_of(arrived: Arrived) -> dict[str, Tensor]:
    """Copies of its adapter's tensors."""
    return {name: tensor.clone() for name, tensor in arrived.tensors.items() if is_of_adapter(name)}


def _mapped(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)


def _bytes_of(buffer: mmap.mmap) -> Tensor:
    return torch.frombuffer(buffer, dtype=torch.uint8)


def _view(memory: Tensor, entry: WeightEntry) -> Tensor:
    own = memory[entry.offset : entry.offset + entry.num_bytes]
    return own.view(getattr(torch, entry.dtype)).view(entry.shape)
