"""A run from its folder to its result: the loop, its phases, what it leaves."""
