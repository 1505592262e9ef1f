"""Losses of given logits: the custom_vjp, and classes split over a mesh. README.md says more."""
