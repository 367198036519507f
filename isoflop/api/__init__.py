"""The Python API: a study or a table as an object of data frames, its fits and its figures."""
