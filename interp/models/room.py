"""Room for what passes of a model keep: memory up to a limit, beyond it files that are mapped into memory.

A file has no name from the start, so that it is gone with the last tensor in it, and with the process however that
ends. safetensors and torch's own mapped storage want a name, and neither says when the disk is full: the space is
reserved here before anything is mapped, as writing to a page for which the disk has no room would kill the process.
"""

import math
import mmap
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

GIB = 2**30
ZEROS = bytes(2**20)


class Room:
    """gib: what may be kept in memory at a time. folder: of the files; by default the system's for temporary files."""

    def __init__(self, gib: float = 2.0, folder: Path | None = None):
        self.limit, self.folder = int(gib * GIB), folder or Path(tempfile.gettempdir())
        self.in_memory: list[weakref.ref[Tensor]] = []

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device) -> Tensor:
        """A tensor to be filled: on the device while the limit allows, else in a file, whose tensor is on the CPU.

        Raises:
            OSError: the disk is full.
        """
        size = math.prod(shape) * dtype.itemsize
        if size and size > self.left():
            return mapped(self.folder, shape, dtype)
        tensor = torch.empty(*shape, dtype=dtype, device=device)
        self.in_memory.append(weakref.ref(tensor))
        return tensor

    def left(self) -> int:
        """How many bytes of memory are not taken."""
        self.in_memory = [own for own in self.in_memory if own() is not None]
        return self.limit - sum(tensor.nbytes for own in self.in_memory if (tensor := own()) is not None)

    def portion(self, each: int, count: int, device: torch.device) -> int:
        """How many of so many things, of so many bytes each, one pass should keep.

        On a CPU what does not fit into memory goes to the disk, of whose free space half may be taken: another pass
        would take longer (docs/scaling.md). On an accelerator it would not, so there as many as fit.
        """
        disk = shutil.disk_usage(self.folder).free // 2 if device.type == "cpu" else 0
        return max(1, min(count, (self.left() + disk) // max(1, each)))


def mapped(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An empty tensor in a file without a name; raises OSError naming the folder where its disk is full."""
    size = math.prod(shape) * dtype.itemsize
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            reserve(file, size)
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype).view(shape)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error


def reserve(file: BinaryIO, size: int) -> None:
    if hasattr(os, "posix_fallocate"):  # which macOS and Windows lack
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, len(ZEROS)):
        file.write(ZEROS[:size - start])
    file.flush()


def fill(table: Tensor, rows: Tensor, values: Tensor) -> None:
    """table[rows] = values, wherever the table is and of whatever type."""
    table[rows.to(table.device)] = values.to(table)
