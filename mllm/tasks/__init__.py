"""Tasks: data sets, prompts, collation, partition and metrics."""
