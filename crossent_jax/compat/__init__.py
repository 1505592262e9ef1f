"""Other libraries' names and semantics, each a thin adapter: the one line that changes is the import.

    from crossent_jax.compat import optax as losses      # instead of: from optax import losses
    from crossent_jax.compat import torch as F           # instead of: import torch.nn.functional as F
    from crossent_jax.compat.t5x import cross_entropy_with_logits

Each module's docstring says where it differs from its original. None of them imports it.
"""
