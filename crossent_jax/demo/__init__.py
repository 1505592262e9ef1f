"""`python -m crossent_jax.demo`: trains small models with `crossent_jax` and reports what it measured."""
