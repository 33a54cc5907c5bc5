"""Two texts that are one example."""

from __future__ import annotations

from typing import Self


class Pair(str):
    """A pair of texts, such as a premise and a hypothesis, or a question and a passage.

    As a string it is both, one after the other in lines of their own, so that whoever counts,
    compares or shows texts need not know of pairs; the tokenizer takes the two apart.
    """

    __slots__ = ("_end",)

    _end: int

    def __new__(cls, first: str, second: str) -> Self:
        """Joins them."""
        pair = super().__new__(cls, f"{first}\n{second}")
        pair._end = len(first)
        return pair

    @property
    def first(self) -> str:
        """The first text."""
        return self[: self._end]

    @property
    def second(self) -> str:
        """The second one."""
        return self[self._end + 1 :]

    @property
    def halved(self) -> bool:
        """Whether one of the two is empty, or space alone."""
        return not (self.first.strip() and self.second.strip())

    def __reduce__(self) -> tuple[type[Self], tuple[str, str]]:
        return type(self), (self.first, self.second)
