"""The coordinator: the round loop, collectors, checkpoints, evaluation and reports."""
