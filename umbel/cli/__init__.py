"""The ``umbel`` command: one file a command, each exporting a typer ``app``; ``main`` assembles them lazily."""
