"""Measurements: speed, memory and overhead against the naive formulas and other libraries, always in the same run."""
