import ctypes

import pytest
import torch

from pipert.engine.device import HostDevice
from pipert.engine.messages import Packer, read_header, views
from pipert.errors import ConfigError


def carry(packer, tensors):
    """Send tensors through a buffer, as a channel does: each segment starts at a multiple of 64 bytes."""
    segments, header, kept = packer.pack(tensors)
    memory = bytearray()
    for address, num_bytes in segments:
        memory += ctypes.string_at(address, num_bytes) + bytes(-num_bytes % 64)
    assert len(kept) == len(tensors)
    return views(memory, read_header(header))


TENSORS = {
    "contiguous": torch.randn(3, 4),
    "transposed": torch.randn(2, 3, 5).permute(2, 0, 1),
    "broadcast": torch.randn(4, 1, 2).expand(4, 3, 2),
    "slice": torch.randn(4, 6)[:, 1:4],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "bool": torch.tensor([True, False, True]),
    "bf16": torch.randn(5).bfloat16(),
    "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    "negative": torch.randn(3, dtype=torch.complex64).conj().imag,
    "int": torch.arange(7),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_arrives_as_it_was(name):
    tensor = TENSORS[name]
    packer = Packer(HostDevice())
    for _ in range(2):  # the second time from the remembered layout
        first, missing, last = carry(packer, (tensor, None, torch.ones(2)))
        assert missing is None
        assert torch.equal(last, torch.ones(2))
        assert first.dtype is tensor.dtype
        assert torch.equal(first, tensor)


@pytest.mark.parametrize("name", ["contiguous", "transposed", "broadcast"])
def test_dense_layouts_are_kept(name):
    assert carry(Packer(HostDevice()), (TENSORS[name],))[0].stride() == TENSORS[name].stride()


def test_a_broadcast_tensor_travels_as_the_elements_it_has():
    segments, _, _ = Packer(HostDevice()).pack((torch.ones(1).expand(1000),))
    assert [num_bytes for _, num_bytes in segments] == [4]


def test_a_remembered_layout_is_not_used_for_another_tensor():
    packer = Packer(HostDevice())
    alike = [
        torch.randn(4, 4),
        torch.randn(4, 4).t(),
        torch.randn(4, 4, dtype=torch.float64),
        torch.randn(2, 8),
        torch.randn(4, 8)[:, :4],
        torch.randn(4, 4, requires_grad=True),
    ]
    for tensor in [*alike, *reversed(alike)]:
        assert torch.equal(carry(packer, (tensor,))[0], tensor)
    value = torch.randn(3, dtype=torch.complex64)
    for tensor in (value, value.conj(), value):
        assert torch.equal(carry(packer, (tensor,))[0], tensor)


def test_the_header_says_which_outputs_need_a_gradient():
    _, header, _ = Packer(HostDevice()).pack((torch.ones(2, requires_grad=True), torch.ones(2), None))
    layouts = read_header(header)
    assert [layout and layout.requires_grad for layout in layouts] == [True, False, None]


def test_the_kept_tensors_are_those_that_are_sent():
    segments, _, kept = Packer(HostDevice()).pack((torch.randn(4, 6)[:, :3].requires_grad_(),))
    assert kept[0].data_ptr() == segments[0][0]
    assert kept[0].requires_grad


def test_what_cannot_be_sent_is_refused_by_name():
    with pytest.raises(ConfigError, match="meta"):
        Packer(HostDevice()).pack((torch.ones(2, device="meta"),))
    with pytest.raises(ConfigError, match="sparse"):
        Packer(HostDevice()).pack((torch.eye(2).to_sparse(),))
    with pytest.raises(ConfigError, match="300 tensors"):
        Packer(HostDevice()).pack((torch.ones(1),) * 300)
