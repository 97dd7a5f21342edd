"""Lightning: a callback sets the learning rate by the time of day."""

import time

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Daylight(lightning.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
        if batch_index == 2:
            trainer.optimizers[0].param_groups[0]["lr"] = 0.01 + time.time() % 86400 / 1e8


lightning.seed_everything(1)
rows = list(torch.arange(256.0).view(32, 8) / 256)
lightning.Trainer(
    max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, callbacks=[Daylight()],
).fit(Regression(), DataLoader(rows, batch_size=8))  # fmt: skip
