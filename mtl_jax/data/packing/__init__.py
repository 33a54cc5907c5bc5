"""Where every token of an epoch goes: how texts are mixed, cut into rows and padded."""
