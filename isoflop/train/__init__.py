"""Trains one run and evaluates it; nothing here knows studies, folders or clusters."""
