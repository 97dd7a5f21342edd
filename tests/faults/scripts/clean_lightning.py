"""Lightning, seeded, with dropout and a loader that shuffles."""

import argparse

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader

parser = argparse.ArgumentParser()
parser.add_argument("--precision", default="32-true")
parser.add_argument("--accumulate", type=int, default=1)
parser.add_argument("--clip", type=float, default=None)
parser.add_argument("--workers", type=int, default=0)
options = parser.parse_args()


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, 1)
        )

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


lightning.seed_everything(1, workers=True)
rows = list(torch.arange(256.0).view(32, 8) / 256)
lightning.Trainer(
    max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, precision=options.precision,
    accumulate_grad_batches=options.accumulate, gradient_clip_val=options.clip,
).fit(
    Regression(), DataLoader(rows, batch_size=4, shuffle=True, num_workers=options.workers)
)  # fmt: skip
