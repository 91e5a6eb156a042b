"""`solar run`: the stages of a pipeline, each in a process of its own; what is done is skipped."""
