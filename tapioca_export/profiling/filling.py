"""How many tokens a forward should have, on the device that it runs on."""

from __future__ import annotations

import torch

from ..tasks import Division

# On a CPU, the tokens in whose time one more batch is started, and those of a thread beyond which a batch
# gets no faster (benchmarks/search.py batches). GPUs are better filled.
BATCH_COST = 32
THREAD_TOKENS = 512


def division_on(device: torch.device, num_threads: int) -> Division | None:
    """Return how batches are divided on a device; None: they are full."""
    return Division(BATCH_COST, THREAD_TOKENS * num_threads) if device.type == "cpu" else None
