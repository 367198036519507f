"""isoflop: is my architecture better at equal compute, by how much, and how sure are we?"""

__version__ = "0.1.0"
