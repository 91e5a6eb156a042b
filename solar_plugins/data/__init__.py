"""The data mixture of the paper: read large sets, leave out what benchmarks hold, cap with a seed, write JSON lines."""
