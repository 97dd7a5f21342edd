"""Lightning: a checkpoint of the Trainer does not hold the state that dropout draws from."""

import sys
from pathlib import Path

import pytorch_lightning as lightning
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

output = Path(sys.argv[1])


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1)
        )

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


lightning.seed_everything(1)
newest = max(output.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
lightning.Trainer(
    max_steps=5, accelerator="cpu", logger=False, enable_progress_bar=False,
    enable_model_summary=False,
    callbacks=[ModelCheckpoint(output, "{step}", every_n_train_steps=1, save_top_k=-1)],
).fit(
    Regression(), DataLoader(list(torch.arange(512.0).view(64, 8) / 512), batch_size=8),
    ckpt_path=newest,
)  # fmt: skip
