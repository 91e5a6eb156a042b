"""Evaluates models: loss and preferences on held-out data, H6 from lm_eval's results, the probe, the order of sDPO."""
