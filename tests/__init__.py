"""Tests, one file per property. Tables: ``grid.py``; truth: ``oracle.py``; planted bugs: ``mutations/``."""
