"""`python -m crossent_jax.demo`: trains small models with `crossent_jax.cross_entropy` and reports what it measured."""
