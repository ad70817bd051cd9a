"""The pretend device in use."""

from __future__ import annotations

from typing import Any


class Current:
    """Where the parts of the device find it."""

    gpu: Any
    """The `PretendCuda` that was entered last."""
