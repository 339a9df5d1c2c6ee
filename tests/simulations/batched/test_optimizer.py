"""Lane optimizers against torch.optim, one optimizer a lane, with gradients that come and go."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.batched.optimizer import clip_lanes_, lane_optimizer
from tests.simulations.batched.lanes import train_config

SIZES = [3, 5, 2]


def torch_optimizer(parameters, config):
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=1.0, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=1.0, weight_decay=config.weight_decay)


@settings(max_examples=40)
@given(
    st.sampled_from(["sgd", "adamw"]),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([0.0, 0.9]),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 10**6),
)
def test_every_lane_is_its_own_optimizer(kind, decay, momentum, lanes, same_rate, complete, seed):
    config = train_config(optimizer=kind, weight_decay=decay, momentum=momentum)
    rng = np.random.default_rng(seed)
    start = torch.from_numpy(rng.normal(size=(lanes, sum(SIZES))))
    ours = start.clone()
    optimizer = lane_optimizer(ours, SIZES, config)
    theirs = [[torch.nn.Parameter(part.clone()) for part in row.split(SIZES)] for row in start]
    rivals = [torch_optimizer(parameters, config) for parameters in theirs]
    for step in range(6):
        active = max(1, lanes - step // 2)  # lanes finish from the end
        gradients = torch.from_numpy(rng.normal(size=(active, sum(SIZES))))
        present = rng.random((active, len(SIZES))) < (2.0 if complete else 0.6)
        rates = [0.1 if same_rate else 0.1 * (lane + 1) for lane in range(active)]
        for lane in range(active):
            for number, (p, g) in enumerate(zip(theirs[lane], gradients[lane].split(SIZES), strict=True)):
                p.grad = g.clone() if present[lane, number] else None
            rivals[lane].param_groups[0]["lr"] = rates[lane]
            rivals[lane].step()
        gradients[torch.from_numpy(~present).repeat_interleave(torch.tensor(SIZES), dim=1)] = 0
        optimizer.step(gradients, rates, present)
    for lane in range(lanes):
        expected = torch.cat([p.detach() for p in theirs[lane]])
        torch.testing.assert_close(ours[lane], expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("largest", [1e-3, 1.0, 1e6])
def test_clipping_is_clip_grad_norm(largest):
    gradients = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients[3] = 0
    expected = []
    for row in gradients:
        p = torch.nn.Parameter(torch.zeros(9, dtype=torch.float64))
        p.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([p], largest)
        expected.append(p.grad)
    clip_lanes_(gradients, largest)
    torch.testing.assert_close(gradients, torch.stack(expected), rtol=1e-12, atol=0)
