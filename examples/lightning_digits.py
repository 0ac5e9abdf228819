"""Trains the network of ``train_digits.py`` by Lightning, with a callback that draws explanations after each epoch.

    python examples/lightning_digits.py            # half a minute on a CPU; writes lightning_digits/
    python examples/lightning_digits.py --quick    # a few steps: does it run?

Accelerate the model in the module's ``__init__``. Lightning's strategies for several devices wrap it afterwards. Needs
lightning, scikit-learn, matplotlib and ``bcos``.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from train_digits import BATCH, TEST, digits, loss_of, network

import bcos_kernels as bk

# after train_digits, because Lightning imports torchvision, which may have been built for another torch
import lightning  # isort: skip


class Digits(lightning.LightningModule):
    """What is trained, and how."""

    def __init__(self) -> None:
        super().__init__()
        self.model = network()

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        return loss_of(self.model(images), labels)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


class Explanations(lightning.Callback):
    """Draws explanations of a few images after each validation, in which the model is in evaluation mode."""

    def __init__(self, images: Tensor, folder: Path) -> None:
        self.images, self.folder = images, folder
        folder.mkdir(parents=True, exist_ok=True)

    def on_validation_epoch_end(self, trainer: lightning.Trainer, module: Digits) -> None:
        figure = bk.explain(module.model, self.images.to(module.device)).plot(smooth=3)
        figure.savefig(self.folder / f"explanations-{trainer.current_epoch}.png")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Trains on digits by Lightning.")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("lightning_digits"))
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args(argv)
    lightning.seed_everything(0)
    images, labels = digits()
    training = DataLoader(TensorDataset(images[TEST:], labels[TEST:]), BATCH, shuffle=True)
    test = DataLoader(TensorDataset(images[:TEST], labels[:TEST]), TEST)
    limits = {"max_epochs": 1, "limit_train_batches": 3} if options.quick else {"max_epochs": options.epochs}
    trainer = lightning.Trainer(
        **limits,
        accelerator="cpu",
        callbacks=[Explanations(images[:4], options.out)],
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), training, test)
    print(f"{trainer.callback_metrics['accuracy']:.1%} of {TEST} test digits are right; pictures: {options.out}")


if __name__ == "__main__":
    main()
