"""A CUDA device of the CPU's own numbers: what a GPU would refuse, and what would make the program wait for it.

Tensors say that they are on a GPU and are computed on the CPU. As on a GPU, an operation on tensors of two devices is
refused, and so is a look at a tensor's memory from numpy. Kernels themselves are the CPU's: what only a GPU's can show
(their results, their speed) is not shown.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda", 0)

# The GPU's queue is waited for where a number, or the size of a result, is needed on the CPU.
_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "repeat_interleave", "equal", "_unique2")
# These take the values of a tensor of the other device, by a copy.
_COPIES = ("_to_copy", "copy_", "_copy_from")
_INDEXED = ("index", "index_put_", "index_put", "_index_put_impl_", "_unsafe_index")


class OnGpu(Tensor):
    """A tensor that says it is on the GPU; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnGpu":
        """Of the same shape and layout."""
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",  # as torch's own code sees it, which would ask the driver about a GPU
            requires_grad=held.requires_grad,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """What the program sees."""
        return GPU

    def tolist(self) -> Any:
        """Numbers, by a copy to the CPU."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Refused, as of a GPU's tensor."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


class PretendCuda(TorchDispatchMode):
    """The device: `waits` counts, by operation, how often the CPU had to wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


def _run(func: Any, args: Any, kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    name = func.overloadpacket.__name__
    if name in ("_pin_memory", "pin_memory"):  # page-locked memory is of the driver
        return args[0].clone()
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = [leaf for leaf in given if isinstance(leaf, OnGpu)]
    # numbers of the CPU, 0-d, go with any device
    elsewhere = [leaf for leaf in given if not isinstance(leaf, OnGpu) and leaf.ndim]
    if on_gpu and elsewhere and name not in _COPIES and not (name in _INDEXED and isinstance(args[0], OnGpu)):
        shapes = [(tuple(leaf.shape), str(leaf.device)) for leaf in given]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} was given {shapes}")
    device = kwargs.get("device")
    asked = None if device is None else torch.device(device)
    moves_off = name == "_to_copy" and asked is not None and asked.type == "cpu"
    copies_off = name == "copy_" and on_gpu and not isinstance(args[0], OnGpu)
    if on_gpu and (name in _WAITS or moves_off or copies_off or (name in _INDEXED and elsewhere)):
        waits[name] += 1
    lands = (asked.type == "cuda") if asked is not None else bool(on_gpu) and (name != "copy_" or not copies_off)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(_held, (args, kwargs))
    result = func(*args, **kwargs)
    if name.endswith("_") and given and result is not None and len(given) and isinstance(given[0], OnGpu):
        return given[0] if isinstance(result, Tensor) else tree_map(OnGpu, result)
    if not lands:
        return result
    return tree_map(lambda leaf: OnGpu(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _held(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, OnGpu) else leaf


class _Event:
    """Done as soon as it is recorded."""

    recorded_on: object = None

    def record(self, stream: object = None) -> None:
        self.recorded_on = stream

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


def _then_moved(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        return make(data, **options) if device is None else make(data, **options).to(device)

    return made


@contextmanager
def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendCuda]:
    """The device, for this thread, until the block ends."""
    empty = torch.empty

    def unpinned(*shape: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", unpinned)
    for name in ("tensor", "as_tensor"):  # these ask the driver before any mode sees them
        monkeypatch.setattr(torch, name, _then_moved(getattr(torch, name)))
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: ("stream of", torch.device(device)))
    monkeypatch.setattr(torch.cuda, "Event", _Event)
    with PretendCuda() as device:
        yield device
