"""What every side of umbel shares: configuration, the adapter vector, the wire, errors."""

__version__ = "0.1.0"
