"""Random tokens, weights and targets for an output layer, and the options that its loss can have."""

import torch

from pipert.kernels.loss_options import LossOptions

OPTIONS = {
    "plain": LossOptions(),
    "ignore a row": LossOptions(ignore_index=3),
    "smoothing": LossOptions(label_smoothing=0.2),
    "z-loss": LossOptions(z_loss=0.3),
    "smoothing and z-loss": LossOptions(label_smoothing=0.1, z_loss=0.2),
    "soft cap": LossOptions(soft_cap=2.0),
    "soft cap and z-loss": LossOptions(soft_cap=1.5, z_loss=0.1),
}


def problem(num_tokens=13, hidden=7, vocab=37, dtype=torch.float64, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, w, bias = normal(num_tokens, hidden) * scale, normal(vocab, hidden), normal(vocab)
    targets = torch.randint(0, vocab, (num_tokens,), generator=generator)
    targets[::4] = -100
    if num_tokens > 6:
        targets[5] = targets[6] = min(3, vocab - 1)
    return x.to(dtype), w.to(dtype), bias.to(dtype), targets, normal(num_tokens)


def assert_close(found, expected, atol):
    for name in ("loss_N", "lse_N", "dx_ND", "dw_VD", "db_V"):
        a, b = getattr(found, name), getattr(expected, name)
        if b is not None:
            torch.testing.assert_close(
                a.double(), b, atol=atol, rtol=atol, msg=lambda text, name=name: f"{name}: {text}"
            )
