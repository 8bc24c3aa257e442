"""torch.distributed.pipelining's ``Schedule…(stages, n_microbatches, loss_fn).step(…)``, run by :class:`pipert.Engine`.

>>> from pipert.torch_pipelining import Schedule
>>> schedule = Schedule("Interleaved1F1B", stages, n_microbatches=8, loss_fn=loss_fn)  # doctest: +SKIP

``docs/torch_pipelining.md`` says what is honoured, and what is refused by name.
"""

from __future__ import annotations

from pipert.torch_pipelining.schedule import Schedule

__all__ = ["Schedule"]
