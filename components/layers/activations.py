"""The activations that parts can be told by name."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

Activation = Literal["relu", "gelu", "silu"]
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}
