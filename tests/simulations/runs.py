"""Whole runs over a RayGrid, beside those of tests.federated over the in-memory grid."""

from __future__ import annotations

from safetensors.numpy import load_file


def run_on_ray(flat, **grid_options):
    """Runs the real ServerApp's work over a RayGrid; returns the run's folder and the grid."""
    from coordinator.run_folder import RunFolder
    from coordinator.server_app import run
    from simulations.ray_grid import RayGrid
    from umbel.config import RunConfig

    config = RunConfig.from_flat(flat)
    with (
        RunFolder.open(config, 1) as folder,
        RayGrid(config.federation.clients, config.to_flat(), **grid_options) as grid,
    ):
        run(grid, config, folder)
        return folder.path, grid


def adapter(path):
    return load_file(path / "adapter" / "adapter_model.safetensors")
