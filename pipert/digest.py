"""Short digests of tensors, to compare them across processes bit by bit without sending them."""

from __future__ import annotations

import ctypes
import hashlib

from torch import Tensor


def digest(tensor: Tensor | None) -> bytes:
    """Return a digest of a tensor's type, shape and bits; of None, nothing."""
    if tensor is None:
        return b""
    tensor = tensor.detach().cpu().contiguous()
    content = (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""
    return hashlib.blake2b(content, digest_size=16, key=f"{tensor.dtype}{tuple(tensor.shape)}".encode()[:64]).digest()
