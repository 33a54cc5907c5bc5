"""The methods, one a file: ``--weighting NAME`` is the class in ``NAME.py`` with that ``name``."""
