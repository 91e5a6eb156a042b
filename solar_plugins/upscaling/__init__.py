"""Plans, strategies, architectures, and the checkpoint writer."""
