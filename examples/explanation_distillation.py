"""Distils a trained B-cos network into a smaller one that also explains as its teacher does.

    python examples/explanation_distillation.py            # a minute on a CPU
    python examples/explanation_distillation.py --quick    # a few steps: does it run?

e²KD (Parchami-Araghi et al., "Good Teachers Explain: Explanation-Enhanced Knowledge Distillation", ECCV 2024) adds to
the distillation loss on logits one minus the cosine similarity of the student's and the teacher's explanations: the
dynamic weights of the teacher's first class. The student's explanation is part of the loss, so each step needs second
derivatives. Both networks are made of ``bcos`` modules, accelerated. In their explanation mode the forward detaches the
scale, so that the loss on logits has a forward of its own, outside of it. Needs scikit-learn, and ``bcos``.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import bcos_kernels as bk
from bcos_kernels.compat import import_reference

bcos = import_reference()
CLASSES, BATCH, TEMPERATURE = 10, 32, 2.0


def network(width: int) -> nn.Module:
    """A B-cos network with norms, accelerated: images ``[N, 6, H, W]`` become logits ``[N, CLASSES]``."""
    conv, norm = bcos.modules.BcosConv2d, bcos.modules.norms.BatchNormUncentered2d
    stages = [(6, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 2)]
    layers = [layer for i, o, stride in stages for layer in (conv(i, o, 3, stride, 1), norm(o))]
    head = [conv(2 * width, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), bcos.modules.LogitLayer(0.1)]
    return bk.accelerate(nn.Sequential(*layers, *head))


def explanation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """One minus the cosine similarity of two explanations ``[N, C, H, W]``, for each image."""
    return 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1))


def logit_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """The Kullback-Leibler divergence of the classes' probabilities at a temperature (Hinton et al., 2015)."""
    student, teacher = (F.log_softmax(logits / TEMPERATURE, 1) for logits in (student, teacher))
    return TEMPERATURE**2 * F.kl_div(student, teacher, log_target=True, reduction="batchmean")


def explained(model: nn.Module, images: Tensor, classes: Tensor | None, create_graph: bool) -> tuple[Tensor, Tensor]:
    """Logits, and the dynamic weights ``[N, C, H, W]`` of the given or the predicted classes."""
    images = images.detach().requires_grad_()
    with bcos.explanation_mode(model):
        logits = model(images)
        chosen = logits.gather(1, (logits.argmax(1) if classes is None else classes)[:, None])
        (weights,) = torch.autograd.grad(chosen.sum(), images, create_graph=create_graph)
    return logits, weights


def step(student: nn.Module, teacher: nn.Module, images: Tensor, weight: float) -> Tensor:
    """The loss of one batch; ``weight`` is that of the explanations."""
    wanted, target = explained(teacher, images, None, create_graph=False)
    loss = logit_loss(student(images), wanted.detach())
    if weight > 0:
        _, found = explained(student, images, wanted.argmax(1), create_graph=True)
        loss = loss + weight * explanation_loss(found, target).mean()
    return loss


def data() -> tuple[Tensor, Tensor, Tensor]:
    """Digits ``[N, 6, 16, 16]`` with their inverse, labels ``[N]``, and which of them are kept aside for a test."""
    bunch = load_digits()
    grey = torch.tensor(bunch.images / 16, dtype=torch.float32)[:, None]
    images = F.interpolate(grey, size=(16, 16), mode="bilinear").expand(-1, 3, -1, -1)
    return torch.cat([images, 1 - images], 1), torch.tensor(bunch.target), torch.arange(len(grey)) % 5 == 0


def trained(model: nn.Module, steps: int, loss_of, training: Tensor) -> nn.Module:
    """The model after ``steps`` steps on batches of the images whose indices are ``training``."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(steps):
        batch = training[torch.randint(len(training), (BATCH,), generator=generator)]
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Distillation of a B-cos network and of its explanations.")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="a few steps: does it run?")
    options = parser.parse_args()
    steps = 5 if options.quick else options.steps
    images, labels, aside = data()
    training = (~aside).nonzero().flatten()
    torch.manual_seed(0)
    teacher = trained(network(24), steps, lambda m, i: F.cross_entropy(m(images[i]), labels[i]), training)
    agreement = teacher(images[aside]).argmax(1)
    print(f"teacher: {(agreement == labels[aside]).float().mean():.1%} right")
    print("student's loss        agrees with the teacher  similarity of the explanations")
    for name, weight in (("logits", 0.0), ("logits, explanations", 1.0)):
        torch.manual_seed(1)
        student = trained(network(8), steps, lambda m, i, w=weight: step(m, teacher, images[i], w), training)
        logits, found = explained(student, images[aside], agreement, create_graph=False)
        _, target = explained(teacher, images[aside], agreement, create_graph=False)
        same, alike = (logits.argmax(1) == agreement).float().mean(), 1 - explanation_loss(found, target).mean()
        print(f"{name:21} {same:23.1%}  {alike:.2f}", flush=True)


if __name__ == "__main__":
    main()
