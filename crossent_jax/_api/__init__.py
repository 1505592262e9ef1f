"""The public functions, their checks and arguments. README.md says more."""
