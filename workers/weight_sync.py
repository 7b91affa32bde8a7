"""The policy's weights in shared memory: one writer (trainer rank 0), any number of readers on the node.

The file has no name: it lives in an anonymous memory file that readers open through the writer's process, so it
disappears with the writer, however that dies. Every transfer carries a version and a checksum, and each reader answers
with both: an engine that serves other weights than the trainer sent cannot go unnoticed.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from workers.records import WeightEntry, WeightManifest

ALIGNMENT = 64
ADAPTER_PREFIX = "base_model.model."
"""Of every tensor's name in an adapter's file."""


class WeightSyncError(RuntimeError):
    """Weights did not arrive as they were sent."""


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of the tensor's bytes in host memory: cheap next to the copy, and it notices order and place.

    >>> tensor_checksum(torch.tensor([1.0, 2.0])) == tensor_checksum(torch.tensor([2.0, 1.0]))
    False
    """
    return zlib.crc32(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


class Checksum:
    """Accumulates the checksum of a set of named tensors, whatever their order."""

    def __init__(self) -> None:
        self._parts: dict[str, int] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        self._parts[name] = tensor_checksum(tensor)

    def hexdigest(self) -> str:
        listing = "\n".join(f"{name} {part:08x}" for name, part in sorted(self._parts.items()))
        return hashlib.blake2b(listing.encode(), digest_size=8).hexdigest()


class SharedWeights:
    """The writer's side: an anonymous memory file that is reused for every version."""

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("heliostat-weights")
        self._map: mmap.mmap | None = None

    def write(
        self, weights: Iterable[tuple[str, Tensor]], *, version: int, num_bytes: int, adapter: str = ""
    ) -> WeightManifest:
        """Copy every tensor in, once. `num_bytes` bounds the whole, alignment included; `adapter`: see the manifest."""
        buffer = self._room_for(num_bytes)
        entries: list[WeightEntry] = []
        checksum = Checksum()
        offset = 0
        for name, tensor in weights:
            size = tensor.numel() * tensor.element_size()
            target = _view(buffer, offset=offset, dtype=tensor.dtype, shape=tuple(tensor.shape))
            target.copy_(tensor.detach())
            checksum.add(name, target)
            dtype = str(tensor.dtype).removeprefix("torch.")
            entries.append(
                WeightEntry(name=name, dtype=dtype, shape=tuple(tensor.shape), offset=offset, num_bytes=size)
            )
            offset += -(-size // ALIGNMENT) * ALIGNMENT
        return WeightManifest(
            version=version,
            path=f"/proc/{os.getpid()}/fd/{self._descriptor}",
            entries=tuple(entries),
            checksum=checksum.hexdigest(),
            adapter=adapter,
        )

    def _room_for(self, num_bytes: int) -> mmap.mmap:
        if self._map is None or len(self._map) < num_bytes:
            os.ftruncate(self._descriptor, num_bytes)
            self._map = mmap.mmap(self._descriptor, num_bytes)
        return self._map


def padded_bytes(tensors: Iterable[Tensor]) -> int:
    """Room that `SharedWeights.write` needs for tensors of these shapes."""
    return sum(-(-t.numel() * t.element_size() // ALIGNMENT) * ALIGNMENT for t in tensors)


def read_weights(manifest: WeightManifest) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, as a view of the shared memory: copy it before the writer's next version.

    Raises WeightSyncError after the last tensor when what was read is not what was written.
    """
    checksum = Checksum()
    descriptor = os.open(manifest.path, os.O_RDWR)
    try:
        buffer = mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)
    for entry in manifest.entries:
        tensor = _view(buffer, offset=entry.offset, dtype=getattr(torch, entry.dtype), shape=entry.shape)
        checksum.add(entry.name, tensor)
        yield entry.name, tensor
    if checksum.hexdigest() != manifest.checksum:
        raise WeightSyncError(
            f"weights of version {manifest.version}: the trainer sent checksum {manifest.checksum}, "
            f"what arrived has {checksum.hexdigest()}"
        )


def is_of_adapter(name: str) -> bool:
    """Whether a manifest's entry is a tensor of its adapter, by PEFT's own naming."""
    return name.startswith(ADAPTER_PREFIX)


def has_base(manifest: WeightManifest) -> bool:
    return not all(is_of_adapter(entry.name) for entry in manifest.entries)


def read_base(manifest: WeightManifest) -> Iterator[tuple[str, Tensor]]:
    """`read_weights` without the adapter."""
    return ((name, tensor) for name, tensor in read_weights(manifest) if not is_of_adapter(name))


def read_adapter_tensors(manifest: WeightManifest) -> dict[str, Tensor]:
    """Copies of them, all as they were sent."""
    return {name: tensor.clone() for name, tensor in read_weights(manifest) if is_of_adapter(name)}


def _view(buffer: mmap.mmap, *, offset: int, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).view(shape)
