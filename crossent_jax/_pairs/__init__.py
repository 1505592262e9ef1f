"""Losses of two distributions. README.md says more."""
