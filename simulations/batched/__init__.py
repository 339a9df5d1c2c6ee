"""Many clients' LoRA training as lanes of one forward and backward.

::

    trainer = LaneTrainer(warm.tuned, warm.collator, config.train, lanes=64)
    outcomes = trainer.train_many([LaneJob(examples, client, seed=seed), ...])    # one each, in order

The frozen base is applied to the rows of all lanes at once (a quantized weight is dequantized once a batch, not once
a client); each lane has its own factors, optimizer state, learning rate, dropout, batches and noise.
``simulations.batched.site`` answers train orders of many virtual devices with it.
"""

from simulations.batched.job import LaneJob, LaneOutcome, LaneResult
from simulations.batched.trainer import LaneTrainer, train_many

__all__ = ["LaneJob", "LaneOutcome", "LaneResult", "LaneTrainer", "train_many"]
