"""JAX itself: what differs between its versions, and axes cut into pieces. README.md says more."""
