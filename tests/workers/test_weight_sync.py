"""Weights arrive bit for bit, in any process of the node, or an error says that they did not."""

from __future__ import annotations

import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import ROOT

from workers.records import WeightManifest
from workers.weight_sync import Checksum, SharedWeights, WeightReader, WeightSyncError, padded_bytes, read_weights


def some_weights(seed: int = 0, *, scale: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weights = {
        "embed": torch.randn(7 * scale, 5, generator=generator),
        "half": torch.randn(33, generator=generator).bfloat16(),
        "other_half": torch.randn(33, generator=generator).bfloat16(),
        "one": torch.tensor(3.5),
    }
    weights["embed"][0, :3] = torch.tensor([float("nan"), float("-inf"), -0.0])
    return weights


def write(shared: SharedWeights, weights: dict[str, torch.Tensor], *, version: int = 1) -> WeightManifest:
    return shared.write(weights.items(), version=version, num_bytes=padded_bytes(weights.values()))


def assert_same_bits(found: dict[str, torch.Tensor], sent: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(sent)
    for name, tensor in sent.items():
        assert found[name].dtype is tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


def test_every_bit_arrives_with_version_and_checksum() -> None:
    shared, sent = SharedWeights(), some_weights()
    manifest = write(shared, sent, version=7)
    assert_same_bits(dict(read_weights(manifest)), sent)
    checksum = Checksum()
    for name, tensor in reversed(sent.items()):
        checksum.add(name, tensor)
    assert (manifest.version, manifest.checksum) == (7, checksum.hexdigest())


def test_views_that_are_not_contiguous_arrive_as_they_read() -> None:
    shared = SharedWeights()
    sent = {"transposed": torch.arange(12.0).view(3, 4).T}
    assert torch.equal(dict(read_weights(write(shared, sent)))["transposed"], sent["transposed"])


def test_tensors_do_not_overlap_and_start_aligned() -> None:
    shared = SharedWeights()
    entries = sorted(write(shared, some_weights()).entries, key=lambda entry: entry.offset)
    for entry, following in itertools.pairwise(entries):
        assert entry.offset % 64 == 0
        assert entry.offset + entry.num_bytes <= following.offset


@pytest.mark.parametrize("name", ["embed", "half", "one"])
def test_one_flipped_bit_is_an_error(name: str) -> None:
    shared = SharedWeights()
    manifest = write(shared, some_weights())
    entry = next(entry for entry in manifest.entries if entry.name == name)
    at = entry.offset + entry.num_bytes - 1
    with open(manifest.path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(WeightSyncError, match="version 1"):
        dict(read_weights(manifest))


def test_two_tensors_in_each_others_place_are_an_error() -> None:
    shared = SharedWeights()
    manifest = write(shared, some_weights())
    by_name = {entry.name: entry for entry in manifest.entries}
    places = {"half": by_name["other_half"].offset, "other_half": by_name["half"].offset}
    entries = tuple(replace(entry, offset=places.get(entry.name, entry.offset)) for entry in manifest.entries)
    with pytest.raises(WeightSyncError):
        dict(read_weights(replace(manifest, entries=entries)))


def test_a_manifest_of_an_older_version_does_not_pass_for_the_new_weights() -> None:
    shared = SharedWeights()
    older = write(shared, some_weights(seed=1), version=1)
    newer = write(shared, some_weights(seed=2), version=2)
    with pytest.raises(WeightSyncError, match="version 1"):
        dict(read_weights(older))
    assert_same_bits(dict(read_weights(newer)), some_weights(seed=2))


def test_what_stays_is_written_and_read_once_and_vouched_for_in_every_version() -> None:
    shared, reader, sent = SharedWeights(), WeightReader(), some_weights()
    num_bytes = padded_bytes(sent.values())
    with reader.reading(write(shared, sent)) as arrived:
        assert arrived.changed == set(sent)
    for version in (2, 3):
        sent["half"] = sent["half"] + version
        manifest = shared.write([("half", sent["half"])], version=version, num_bytes=num_bytes, rest_stays=True)
        with reader.reading(manifest) as arrived:
            assert arrived.changed == {"half"}
            assert_same_bits({name: arrived.tensors[name] for name in sent}, sent)
        checksum = Checksum()
        for name, tensor in sent.items():
            checksum.add(name, tensor)
        assert arrived.checksum == manifest.checksum == checksum.hexdigest()
        assert manifest.num_bytes == sent["half"].nbytes
    # Somebody who comes late, or from another writer, has everything to read.
    for late in (WeightReader(), reader):
        if late is reader:
            manifest = write(SharedWeights(), sent, version=3)
        with late.reading(manifest) as arrived:
            assert arrived.changed == set(sent)


def test_a_version_that_was_missed_and_one_that_failed_are_caught_up_with() -> None:
    shared, reader, sent = SharedWeights(), WeightReader(), some_weights()
    num_bytes = padded_bytes(sent.values())
    with reader.reading(write(shared, sent)):
        pass
    shared.write([("one", sent["one"])], version=2, num_bytes=num_bytes, rest_stays=True)
    manifest = shared.write([("half", sent["half"])], version=3, num_bytes=num_bytes, rest_stays=True)
    with pytest.raises(RuntimeError, match="half-way"), reader.reading(manifest) as arrived:
        assert arrived.changed == {"one", "half"}
        raise RuntimeError("half-way")
    with reader.reading(manifest) as arrived:
        assert arrived.changed == set(sent)


def test_the_same_version_written_again_with_other_content_is_read_again() -> None:
    shared, reader = SharedWeights(), WeightReader()
    for seed in (1, 2):
        with reader.reading(write(shared, some_weights(seed=seed), version=1)) as arrived:
            assert_same_bits({name: arrived.tensors[name] for name in some_weights()}, some_weights(seed=seed))
            assert len(arrived.changed) == 4


def test_matrices_lie_behind_each_other_whatever_vectors_come_between() -> None:
    weights = {f"{name}.{part}": torch.zeros(shape) for name in "qkv" for part, shape in [("w", (4, 16)), ("b", (4,))]}
    entries = {entry.name: entry for entry in write(SharedWeights(), weights).entries}
    assert entries["k.w"].offset == entries["q.w"].offset + entries["q.w"].num_bytes
    assert entries["v.w"].offset == entries["k.w"].offset + entries["k.w"].num_bytes


def test_too_little_room_is_an_error_before_anything_overlaps() -> None:
    weights = some_weights()
    with pytest.raises(ValueError, match="no room"):
        SharedWeights().write(weights.items(), version=1, num_bytes=padded_bytes(weights.values()) - 64)


def test_versions_may_grow_and_shrink() -> None:
    shared = SharedWeights()
    for version, scale in enumerate((1, 400, 2)):
        sent = some_weights(seed=version, scale=scale)
        manifest = write(shared, sent, version=version)
        assert manifest.version == version
        assert_same_bits(dict(read_weights(manifest)), sent)


WRITER = """
    import pickle, sys
    import torch
    from workers.weight_sync import SharedWeights, padded_bytes
    weights = {"a": torch.arange(1000.0), "b": torch.full((3, 2), -2.5, dtype=torch.bfloat16)}
    shared = SharedWeights()
    manifest = shared.write(weights.items(), version=3, num_bytes=padded_bytes(weights.values()))
    sys.stdout.buffer.write(pickle.dumps(manifest))
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_another_process_reads_them_and_they_vanish_with_a_killed_writer() -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WRITER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    try:
        manifest = pickle.load(writer.stdout)
        found = {name: tensor.clone() for name, tensor in read_weights(manifest)}
        assert torch.equal(found["a"], torch.arange(1000.0))
        assert torch.equal(found["b"], torch.full((3, 2), -2.5, dtype=torch.bfloat16))
    finally:
        writer.kill()
        writer.communicate()
    assert not Path(manifest.path).exists()
    with pytest.raises(FileNotFoundError):
        dict(read_weights(manifest))


def test_a_reader_leaves_no_descriptor_open() -> None:
    shared = SharedWeights()
    manifest = write(shared, some_weights())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        dict(read_weights(manifest))
    deadline = time.monotonic() + 2.0
    while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/fd")) <= before
