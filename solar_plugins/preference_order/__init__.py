"""The order for stepwise DPO: which preference sets a model finds easy already."""
