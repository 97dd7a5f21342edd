"""Lightning: the sampler takes its seed from torch's generator, which nobody has seeded."""

import pytorch_lightning as lightning
import torch
from torch.utils.data import DataLoader


class Regression(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
        torch.nn.init.constant_(self.layer.weight, 0.1)
        torch.nn.init.zeros_(self.layer.bias)

    def training_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


rows = list(torch.arange(256.0).view(32, 8) / 256)
lightning.Trainer(
    max_steps=4, accelerator="cpu", logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False,
).fit(Regression(), DataLoader(rows, batch_size=8, shuffle=True))  # fmt: skip
