"""From the rows of a data set to what a model is trained on, in SOLAR's format."""
