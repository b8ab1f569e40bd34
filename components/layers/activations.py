"""The activations that parts can be told by name."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

Activation = Literal["relu", "gelu", "silu", "swish"]
ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu, "swish": F.silu}
"""`swish` is a published name of silu; either stays as it was given, so that a file comes back as it was."""
