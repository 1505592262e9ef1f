"""Losses of logits that are a product and are never whole. README.md says more."""
