"""The mathematics of a row. README.md says more."""
