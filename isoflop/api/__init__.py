"""The Python API: a study or a table as an object of data frames, its fits and its figures.

`isoflop.load`, `isoflop.fit` and `isoflop.optima` are in results.py; rows.py reads what they and
the verbs of the command line take.
"""
