"""`solar probe`: the loss of every layer plan before training, measured without writing a checkpoint."""
