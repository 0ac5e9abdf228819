"""Two trainings of one model on the digits, in turns step by step, so that their times compare in pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..measure import interleave, saved_bytes
from .images import Digits

__all__ = ["Training", "batches", "build", "train"]

BATCH = 32
LEARNING_RATE = 1e-3  # with Adam, binary cross-entropy and a cosine schedule: the reference's recipe for small images
WARM_UP = 3


@dataclass
class Training:
    """One model and the figures of its training."""

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each step from forward to update, without the first ``WARM_UP`` steps."""
    accuracy: float = math.nan
    saved: int = 0
    """Bytes kept for the backward of one step."""


def build(seed: int) -> nn.Module:
    """The reference's ResNet-18 for small inputs, 10 classes, with weights drawn from ``seed``."""
    from bcos.models import pretrained

    torch.manual_seed(seed)
    model = pretrained.resnet18(pretrained=False, small_inputs=True, num_classes=10, logit_bias=-math.log(9))
    return model.to(memory_format=torch.channels_last)


def batches(count: int, epochs: int, seed: int) -> list[Tensor]:
    """Indices ``[BATCH]`` of each step; the last images of a permutation that fill no batch are left out."""
    generator = torch.Generator().manual_seed(seed)
    permutations = (torch.randperm(count, generator=generator) for _ in range(epochs))
    return [indices for order in permutations for indices in order.split(BATCH) if len(indices) == BATCH]


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the logits against one-hot labels."""
    return F.binary_cross_entropy_with_logits(model(images), F.one_hot(labels, 10).float())


def stepper(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], float]:
    """A function that trains ``model`` on one batch and returns the loss before the update."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def step(images: Tensor, labels: Tensor) -> float:
        optimizer.zero_grad()
        loss = loss_of(model, images, labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        return loss.item()

    return step


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of the images that the model in evaluation mode gets right."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(part).argmax(1) for part in images.split(90)])
    return (predicted == labels).float().mean().item()


def train(
    models: tuple[nn.Module, ...], digits: Digits, schedule: list[Tensor], advance: Callable[[], None]
) -> list[Training]:
    """Trains each model on the batches of ``schedule``; ``advance()`` is called after each step of either."""
    trainings = [Training(model.train()) for model in models]
    first = digits.images[schedule[0]], digits.labels[schedule[0]]
    for training in trainings:
        parameters = list(training.model.parameters())
        state = {k: v.clone() for k, v in training.model.state_dict().items()}
        training.saved = saved_bytes(lambda m=training.model: loss_of(m, *first), parameters)
        training.model.load_state_dict(state)  # the forward above has moved the running variances

    def stepping(training: Training) -> Callable[[], None]:
        step, remaining = stepper(training.model, len(schedule)), iter(schedule)

        def call() -> None:
            indices = next(remaining)
            training.losses.append(step(digits.images[indices], digits.labels[indices]))
            advance()

        return call

    calls = {i: stepping(training) for i, training in enumerate(trainings)}
    times = interleave(calls, 0, len(schedule), len(schedule), warm_up=0)
    for i, training in enumerate(trainings):
        training.seconds = times[i][WARM_UP:]
        training.accuracy = accuracy(training.model, digits.test_images, digits.test_labels)
    return trainings
