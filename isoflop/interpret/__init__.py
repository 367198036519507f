"""Reads the circuits of a trained model with experts: which are chosen, and what they do.

Reads results only (run folders, weights, prepared data, tables); nothing but the command line and
the notebooks imports it.
"""
