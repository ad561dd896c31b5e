"""Host memory that a rank's part of a checkpoint is copied to.

The memory is laid out as the safetensors file that will be written, header first: a copy in place,
and the file is there, with nothing to serialise. It is kept from one checkpoint to the next, for
pages that are new to a process cost more time than the copy.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.engine.pieces import Piece

# The names of number formats in the header of a safetensors file.
FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
}
ALIGNMENT = 8  # bytes, of a file's first tensor; the widest number format

_Layout = tuple[tuple[str, torch.dtype, tuple[int, ...]], ...]


class StagedFile:
    """One safetensors file of flattened tensors, in host memory.

    Args:
        pinned: Page-locked, so that a GPU copies to it at full speed and beside its other work.
    """

    def __init__(self, pinned: bool) -> None:
        self._pinned = pinned
        self._layout: _Layout = ()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._places: list[Tensor] = []

    def stage(self, pieces: Sequence[Piece]) -> None:
        """Begin to copy pieces here; on a GPU they are there once it has been waited for.

        Memory is allocated for the first ones, and again only if others come than the last time.
        """
        # Widest numbers first: then all lie at multiples of their size.
        ordered = sorted(pieces, key=lambda piece: -piece[1].element_size())
        layout = tuple((str(place), piece.dtype, tuple(piece.shape)) for place, piece in ordered)
        if layout != self._layout or not len(self._memory):
            self._allocate(layout)
        for there, (_, piece) in zip(self._places, ordered, strict=True):
            there.copy_(piece, non_blocking=True)

    def content(self) -> memoryview:
        """The file as it is to be written; not to be read while `stage` copies."""
        return memoryview(self._memory.numpy())

    def _allocate(self, layout: _Layout) -> None:
        self._memory, self._places = torch.empty(0, dtype=torch.uint8), []  # before the new one
        ends, end = [], 0
        for _, dtype, shape in layout:
            end += dtype.itemsize * math.prod(shape)
            ends.append(end)
        head = header(layout, ends)
        self._memory = torch.empty(len(head) + end, dtype=torch.uint8, pin_memory=self._pinned)
        self._memory[: len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        start = 0
        for (_, dtype, shape), end in zip(layout, ends, strict=True):
            room = self._memory[len(head) + start : len(head) + end]
            self._places.append(room.view(dtype).view(shape))
            start = end
        self._layout = layout


def header(layout: _Layout, ends: Sequence[int]) -> bytes:
    """The start of a safetensors file: the header's length in 8 bytes, then JSON and spaces.

    Args:
        layout: Name, number format and shape of each tensor, in their order.
        ends: The byte after each, counted from the end of the header.

    Source: The format's specification, github.com/huggingface/safetensors.
    """
    entries = {}
    for (name, dtype, shape), start, end in zip(layout, [0, *ends], ends, strict=False):
        entries[name] = {
            "dtype": FORMATS[dtype],
            "shape": [math.prod(shape)],
            "data_offsets": [start, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


@dataclass(frozen=True, slots=True)
class CopyPoint:
    """From when on a device's numbers may be copied, and beside what.

    Args:
        event: On a GPU, what has to be computed first; None on a CPU, where it is.
        stream: On a GPU, where the copies run.
    """

    event: torch.cuda.Event | None = None
    stream: torch.cuda.Stream | None = None


def copy_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A stream of a GPU for copies; one for all of a run, since each keeps memory of its own."""
    return torch.cuda.Stream(device) if device.type == "cuda" else None


def copy_point(device: torch.device, stream: torch.cuda.Stream | None) -> CopyPoint:
    """This moment of a device."""
    if stream is None:
        return CopyPoint()
    return CopyPoint(torch.cuda.current_stream(device).record_event(), stream)


def stage(
    files: dict[str, StagedFile], pieces: Mapping[str, Sequence[Piece]], ready: CopyPoint
) -> None:
    """Copy a rank's pieces, by kind, into its files; when this returns they are there.

    On a GPU the copies run beside what it computes meanwhile.

    Args:
        files: By the same kinds, or empty before the first time.
        pieces: As `pieces_of` has them; they must not change before this returns.
        ready: When they were given.
    """
    if ready.event is None or ready.stream is None:
        _copy(files, pieces, pinned=False)
        return
    ready.stream.wait_event(ready.event)
    with torch.cuda.stream(ready.stream):
        _copy(files, pieces, pinned=True)
    ready.stream.synchronize()


def _copy(
    files: dict[str, StagedFile], pieces: Mapping[str, Sequence[Piece]], pinned: bool
) -> None:
    for kind, own in pieces.items():
        files.setdefault(kind, StagedFile(pinned)).stage(own)
