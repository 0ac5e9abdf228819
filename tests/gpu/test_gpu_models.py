"""Networks of the reference at 224², accelerated: logits, explanation and one training step's gradients."""

import copy
import warnings

import pytest
import torch
from cases import Budget, bcos
from torch import nn
from torch.autograd import grad

import bcos_kernels as bk

MODELS = ("resnet50", "convnext_tiny", "simple_vit_s_patch16_224")
BATCHES = 4  # of two images: the error of a deep network differs by a fifth from one image to the next


def images(seed: int) -> torch.Tensor:
    rgb = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([rgb, 1 - rgb], 1)


def network(name: str) -> nn.Module:
    """A model in float64; its batch statistics are set on noise, B-cos signals fade without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(bcos.pretrained, name)(pretrained=False).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for module in model.modules():
            if hasattr(module, "running_var"):
                module.momentum = 1.0
        model.train()(images(BATCHES))
    return model.eval()


def results(model: nn.Module, x: torch.Tensor, top: torch.Tensor | None = None):
    """Name -> the results of each image, and the class that each is explained for: the largest logit's unless given.

    The gradients of a training step's loss are one vector for both images.
    """
    x = x.clone().requires_grad_()
    logits = model(x)
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = nn.functional.cross_entropy(wide, torch.arange(len(x), device=x.device))
    gradients = torch.cat([g.flatten() for g in grad(loss, [p for p in model.parameters() if p.requires_grad])])
    top = logits.argmax(1) if top is None else top.to(x.device)
    with model.explanation_mode():
        (explanation,) = grad(model(x).gather(1, top[:, None]).sum(), x)
    found = {"logits": logits, "explanation": explanation, "training": gradients[None]}
    return {name: t.detach().cpu() for name, t in found.items()}, top


@pytest.mark.parametrize("backend", ["cuda", "triton", "cuda,triton"])
@pytest.mark.parametrize("name", MODELS)
def test_accelerated_network(name, backend):
    """Errors against float64 at most 1.1 times those of the reference on this GPU in the same dtype, plus 1 ulp.

    float64 is the reference's plain PyTorch, on the GPU as well, with the weights and images of the dtype.
    """
    model, budget = network(name), Budget()
    for dtype in (torch.float32, torch.bfloat16):
        reference = copy.deepcopy(model).to("cuda", dtype).to(memory_format=torch.channels_last)
        ours = bk.accelerate(copy.deepcopy(reference), backend=backend)
        assert bk.report(ours).accelerated > 0
        exact = copy.deepcopy(reference).double()
        for seed in range(BATCHES):
            x = images(seed).to("cuda", dtype).contiguous(memory_format=torch.channels_last)
            truth, top = results(exact, x.double())
            found, theirs = results(ours, x, top)[0], results(reference, x, top)[0]
            for what in truth:
                for mine, yours, true in zip(found[what], theirs[what], truth[what], strict=True):
                    size = true.norm()
                    scaled = (mine.double() / size, yours.double() / size, true / size)
                    budget.add(f"{what} in {dtype}", *scaled, dtype)
    budget.check()


def test_a_folded_network():
    """The norms are in the weights, and the logits and explanations stay within the error of the network."""
    model = bk.accelerate(network("resnet50")).float().to("cuda")
    folded, x = bk.fold(model), images(9).float().to("cuda")
    exact, top = results(model.double(), x.double())
    for key, found in results(folded.requires_grad_(), x, top)[0].items():
        if key != "training":  # its parameters are others
            assert (found.double() - exact[key]).norm() <= 1e-4 * exact[key].norm()


@pytest.mark.parametrize("pairs", [False, True])
def test_a_graph_replays_whole_training_steps(pairs):
    """Every loss is that of the same steps without a graph; bf16 weights differ by a rounding where the vendor does."""
    torch.manual_seed(0)
    model = bk.accelerate(network("resnet50"), pairs=pairs).train()
    model = model.to("cuda", torch.bfloat16).to(memory_format=torch.channels_last)
    x = images(BATCHES + 1).to("cuda", torch.bfloat16).to(memory_format=torch.channels_last)
    labels = torch.zeros(len(x), dtype=torch.long, device="cuda")

    def steps_of(net: nn.Module):
        optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

        def step() -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(net(x).float(), labels)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    eager, step = steps_of(copy.deepcopy(model)), steps_of(model)
    before = copy.deepcopy(model.state_dict())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compilers and libraries start here
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    model.load_state_dict(before)
    losses = []
    for _ in range(4):
        graph.replay()
        losses.append((captured.item(), eager().item()))
    ours, expected = torch.tensor(losses).T
    torch.testing.assert_close(ours, expected, rtol=0.02, atol=0)
    assert ours[-1] < ours[0] and int(model.state_dict()["bn1.num_batches_tracked"]) == 5
