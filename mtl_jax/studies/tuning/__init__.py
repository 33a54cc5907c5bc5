"""Rates and length of each arm of a study, chosen on validation within an equal budget."""
