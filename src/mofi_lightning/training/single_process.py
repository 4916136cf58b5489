"""The strategy of one process: Lightning's own, with the checkpoints that any number of processes reads."""

from __future__ import annotations

from lightning.pytorch.strategies import SingleDeviceStrategy

from mofi_lightning.training.checkpoints.strategy import FolderCheckpoints


class SingleProcessStrategy(FolderCheckpoints, SingleDeviceStrategy):
    """One process on one device.

    Args:
        device: such as 'cpu' or 'cuda:0'.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__(device=device)
