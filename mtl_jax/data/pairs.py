"""Two texts that are one example."""

from __future__ import annotations

from typing import Self


class Pair(str):
    """A pair of texts, such as a premise and a hypothesis, or a question and a passage.

    As a string it is both, one after the other in lines of their own, so that whoever counts,
    compares or shows texts need not know of pairs; the tokenizer takes the two apart.

    Attributes:
        first: The first text.
        second: The second one.
    """

    first: str
    second: str

    def __new__(cls, first: str, second: str) -> Self:
        """Joins them."""
        pair = super().__new__(cls, f"{first}\n{second}")
        pair.first, pair.second = first, second
        return pair

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self.first, self.second)
