"""Comparisons between families: multipliers, exponents, orders by loss, families of one size."""
