"""torch.export files: they compute what PyTorch computes, hold the kept weights only, and are not trusted."""

from __future__ import annotations
