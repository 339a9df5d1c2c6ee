"""``python -m umbel`` is the ``umbel`` command."""

from umbel.cli.main import run

if __name__ == "__main__":
    run()
