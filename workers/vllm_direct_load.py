"""New weights straight into the layers that compute with them: packed from where they lie, rebuilt by nobody.

vLLM's own loaders make every layer's parameters anew, fill them, pack them and copy them back. Where it is known which
tensors a parameter is made of, one pass is enough. What is known is checked against vLLM's own loaders, bit by bit,
while they load the first version; a model with any layer that is not known is left to them. For CPU only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.platforms import current_platform

PACK = "process_weights_after_loading"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Piece:
    """One parameter of a layer, and the checkpoint's tensors that it is made of, one below the other."""

    layer: nn.Module
    parameter: str
    sources: tuple[str, ...]
    is_emptied: bool
    """The layer computes from a packed copy alone, and the parameter holds nothing."""
    is_packed: bool
    is_shared: bool
    """The parameter is that of an earlier piece, which fills it: a head's that is tied to the embedding."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if self.parameter == "weight" and hasattr(self.layer, "cpu_linear"):
            # A new packed copy takes the old one's room; a layer that only looks rows up needs none.
            self.layer.cpu_linear = nn.functional.linear
        if self.is_emptied:
            whole = self.joined(tensors).to(self.layer.weight.dtype)
            self.layer.weight = nn.Parameter(whole, requires_grad=False)
        elif not self.is_shared:
            self._fill(tensors)
        if self.is_packed:
            getattr(self.layer.quant_method, PACK)(self.layer)
        if self.is_emptied and self.layer.weight.numel() > 0:
            # vLLM could not pack it after all; what it computes from must not change with the writer's next version.
            self.layer.weight = nn.Parameter(self.layer.weight.clone(), requires_grad=False)

    def _fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Row by row, in place; rows that vLLM adds to a vocabulary stay zero."""
        start, parameter = 0, getattr(self.layer, self.parameter).data
        for source in self.sources:
            tensor = tensors[source]
            parameter[start : start + len(tensor)].copy_(tensor)
            start += len(tensor)

    def joined(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """All rows: a view where the tensors lie behind each other already."""
        first, *others = parts = [tensors[source] for source in self.sources]
        memory, end = first.untyped_storage().data_ptr(), first.data_ptr() + first.nbytes
        for part in others:
            if part.untyped_storage().data_ptr() != memory or part.data_ptr() != end:
                return torch.cat(parts)
            end += part.nbytes
        shape = (sum(len(part) for part in parts), *first.shape[1:])
        return first.as_strided(shape, first.stride())

    def differs(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether the parameter, as vLLM has loaded it, holds other bits."""
        expected, found = self.joined(tensors), getattr(self.layer, self.parameter).data
        if found.shape[1:] != expected.shape[1:] or len(found) < len(expected):
            return True
        expected = expected.to(found.dtype).contiguous()
        return not torch.equal(found[: len(expected)].view(torch.uint8), expected.view(torch.uint8))


def pieces_of(model: nn.Module, names: Collection[str]) -> tuple[Piece, ...]:
    """Where the tensors of these names land; nothing unless every parameter, layer and name is known."""
    heads = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    fused = getattr(model, "packed_modules_mapping", {})
    sources: dict[int, tuple[str, ...]] = {}
    pieces: list[Piece] = []
    for path, layer in model.named_modules():
        if not _is_known(layer):
            return ()
        for name, parameter in layer.named_parameters(recurse=False):
            is_shared = id(parameter) in sources
            own = sources.setdefault(id(parameter), _sources(path, name, names, fused))
            method = getattr(layer, "quant_method", None) if name == "weight" else None
            is_linear = isinstance(method, UnquantizedLinearMethod)
            # vLLM packs an embedding, too, that only looks rows up.
            is_head = isinstance(method, UnquantizedEmbeddingMethod) and (layer in heads or not heads)
            pieces.append(
                Piece(
                    layer=layer,
                    parameter=name,
                    sources=own,
                    is_emptied=is_linear,
                    is_packed=is_linear or is_head,
                    is_shared=is_shared,
                )
            )
    used = [name for own in sources.values() for name in own]
    return tuple(pieces) if sorted(used) == sorted(names) else ()


def _sources(path: str, parameter: str, names: Collection[str], fused: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if f"{path}.{parameter}" in names:
        return (f"{path}.{parameter}",)
    parent, _, leaf = path.rpartition(".")
    return tuple(f"{parent}.{part}.{parameter}" for part in fused.get(leaf, [leaf]))


def _is_known(layer: nn.Module) -> bool:
    """Whether all that vLLM does with the layer's weights is to pack a matrix."""
    if current_platform.is_zen_cpu() or getattr(layer, "_cpu_skip_gemm_dispatch", False):
        return False  # it may go on reading from the tensor that it was given
    method = getattr(layer, "quant_method", None)
    if method is None:
        return not hasattr(layer, PACK) or type(layer) is Attention
    if getattr(layer, "tp_size", 1) != 1:
        return False
    # Where nothing is packed, the weight is still there.
    is_linear = type(method) is UnquantizedLinearMethod and layer.weight.numel() == 0
    return is_linear or type(method) is UnquantizedEmbeddingMethod


@contextmanager
def compared(pieces: Sequence[Piece], tensors: Mapping[str, Tensor]) -> Iterator[list[str]]:
    """While vLLM's own loaders load these tensors: collects the first name of each piece that they fill otherwise."""
    differing: list[str] = []
    emptied = [piece for piece in pieces if piece.is_emptied]
    unseen = {id(piece.layer): piece for piece in emptied}

    def look(layer: nn.Module) -> None:
        piece = unseen.pop(id(layer), None)
        if piece is not None and piece.differs(tensors):
            differing.append(piece.sources[0])

    for piece in emptied:
        _before_packing(piece.layer.quant_method, look)
    try:
        yield differing
    finally:
        for piece in emptied:
            piece.layer.quant_method.__dict__.pop(PACK, None)
    differing += [piece.sources[0] for piece in unseen.values()]
    differing += [piece.sources[0] for piece in pieces if not piece.is_emptied and piece.differs(tensors)]


def _before_packing(method: object, look: Callable[[nn.Module], None]) -> None:
    pack = getattr(type(method), PACK)

    def look_and_pack(layer: nn.Module) -> None:
        look(layer)
        pack(method, layer)

    method.__dict__[PACK] = look_and_pack
