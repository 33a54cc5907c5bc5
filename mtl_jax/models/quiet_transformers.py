"""Transformers, imported without what it says of packages that nothing here needs."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def tokenizer_class() -> type[PreTrainedTokenizerFast]:
    """Imports transformers without its advice to install PyTorch, which nothing here needs."""
    switch = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(switch)
    os.environ[switch] = "1"
    try:
        from transformers import PreTrainedTokenizerFast
    finally:
        if before is None:
            del os.environ[switch]
        else:
            os.environ[switch] = before
    return PreTrainedTokenizerFast
