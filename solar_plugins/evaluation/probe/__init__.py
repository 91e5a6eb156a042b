"""`solar probe`: what each layer plan costs before training, measured without writing a checkpoint."""
