"""``bk.explain``: the rows of the dynamic linear map, whichever model, targets and chunk; what it leaves as it was."""

import copy
import importlib
import threading

import pytest
import torch
from attention_families import Early as EarlyAttention
from attention_families import Late as LateAttention
from families import Bcosification, FirstVersion, M, Minimal, ModelGuidance, OneFormula, set_mode
from norm_families import N
from torch import nn
from torch.utils.checkpoint import checkpoint

import bcos_kernels as bk
from bcos_kernels.explanation import explanation_mode, passes
from bcos_kernels.explanation.result import opacity_limit

reference = importlib.import_module("bcos.common")

CLASSES, IMAGES = 5, 3


def convolutional(layer, norm=None, **options):
    middle = [] if norm is None else [norm(8)]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(layer(6, 8, 3, padding=1, **options), *middle, layer(8, CLASSES, 3, stride=2), *head)


class Tokens(nn.Module):
    """Embeddings ``[N, L, 10]`` -> logits ``[N, K]``."""

    def __init__(self, attention, linear):
        super().__init__()
        self.attention, self.head = attention(10, 2, 6, nn.Linear, nn.LayerNorm), linear(10, CLASSES)

    def forward(self, embeddings):
        return self.head((embeddings + self.attention(embeddings)).mean(1))


MODELS = {
    "bcos": lambda: convolutional(M.BcosConv2d, N.BatchNormUncentered2d, b=1.5),
    "bcos, groups": lambda: convolutional(M.BcosConv2d, lambda c: N.DetachableGroupNorm2d(2, c), max_out=2),
    "ours": lambda: convolutional(bk.BcosConv2d, nn.BatchNorm2d),
    "first version": lambda: convolutional(FirstVersion.BcosConv2d),
    "one formula": lambda: convolutional(OneFormula.BcosConv2d),
    "B-cosification": lambda: convolutional(Bcosification.BcosifyConv2d),
    "one file": lambda: convolutional(Minimal.BcosConv2d),
    "model guidance": lambda: convolutional(ModelGuidance.BcosConv2d, max_out=2),
    "tokens": lambda: Tokens(EarlyAttention, M.BcosLinear),
    "tokens, late": lambda: Tokens(LateAttention, ModelGuidance.BcosLinear),
}


def made(name, dtype=torch.float64):
    torch.manual_seed(3)
    model = MODELS[name]().to(dtype)
    for module in model.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def example(name, count=IMAGES, dtype=torch.float64):
    generator = torch.Generator().manual_seed(5)
    shape = (count, 7, 10) if "tokens" in name else (count, 3, 9, 8)
    x = torch.rand(shape, generator=generator, dtype=torch.float64)
    return (x if "tokens" in name else torch.cat([x, 1 - x], 1)).to(dtype)


def switched(model, on):
    for module in model.modules():
        if hasattr(module, "explanation_mode") or hasattr(module, "set_explanation_mode"):
            set_mode(module, on)


def by_loop(model, x, classes):
    """``(logits, rows)`` by one forward and one backward for each image and each of its classes."""
    logits, rows = [], []
    for image, wanted in zip(x, classes, strict=True):
        found = []
        for k in wanted:
            leaf = image[None].clone().requires_grad_()
            switched(model, True)
            y = model(leaf)
            y[0, k].backward(inputs=[leaf])
            switched(model, False)
            found.append(leaf.grad[0])
        logits.append(y.detach()[0])
        rows.append(torch.stack(found))
    return torch.stack(logits), torch.stack(rows)


def assert_close(mine, theirs, rtol=1e-12):
    assert mine.shape == theirs.shape
    assert (mine - theirs).norm() <= rtol * theirs.norm()


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:accelerate")
def test_the_rows_are_those_of_a_loop(name, accelerated):
    model, x = made(name), example(name)
    classes = torch.tensor([[4, 0, 2], [1, 1, 3], [0, 2, 4]])
    logits, rows = by_loop(model, x, classes)
    model = bk.accelerate(model) if accelerated else model
    found = bk.explain(model, x, classes)
    assert_close(found.logits, logits)
    assert_close(found.weights, rows)
    dim = -1 if "tokens" in name else 2
    assert_close(found.contributions, (rows * x[:, None]).sum(dim))
    assert torch.equal(found.targets, classes) and not found.is_ragged
    for chunk in (1, 2):
        assert_close(bk.explain(model, x, classes, chunk=chunk).weights, rows)
    assert not any(t.requires_grad for t in (found.logits, found.weights, found.contributions))


def test_the_contributions_sum_to_the_logit():
    model = convolutional(M.BcosConv2d).double().eval()
    found = bk.explain(model, example("bcos"), "top2")
    assert_close(found.contributions.sum((2, 3)), found.logits.gather(1, found.targets))


def test_targets():
    model, x = made("bcos"), example("bcos")
    every = bk.explain(model, x, [list(range(CLASSES))] * IMAGES).weights
    logits = bk.explain(model, x).logits
    images = torch.arange(IMAGES)

    def check(targets, classes):
        found = bk.explain(model, x, targets)
        assert torch.equal(found.targets, classes)
        assert_close(found.weights, every[images[:, None], classes])

    check(None, logits.argmax(1, keepdim=True))
    check(2, torch.full((IMAGES, 1), 2))
    check(torch.tensor([0, 4, 1], dtype=torch.int32), torch.tensor([[0], [4], [1]]))
    check([[0, 1], [4, 4], [1, 2]], torch.tensor([[0, 1], [4, 4], [1, 2]]))
    check("top3", logits.topk(3).indices)


@pytest.mark.parametrize("chunk", [None, 1, 2])
@pytest.mark.parametrize("graph", [False, True])
def test_pairs_may_be_ragged(chunk, graph):
    model, x = made("bcos"), example("bcos")
    every = bk.explain(model, x, [list(range(CLASSES))] * IMAGES).weights
    pairs = [(2, 1), (0, 3), (2, 4), (2, 0), (0, 3)]
    found = bk.explain(model, x, pairs, chunk=chunk, create_graph=graph)
    assert found.is_ragged and found.targets.tolist() == [list(pair) for pair in pairs]
    expected = torch.stack([every[sample, k] for sample, k in pairs])
    assert_close(found.weights.detach(), expected)
    assert_close(found.contributions.detach(), (expected * x[[sample for sample, _ in pairs]]).sum(1))
    assert found.rgba().shape == (5, 9, 8, 4)


def test_directions():
    model, x = made("bcos"), example("bcos")
    directions = torch.randn(4, CLASSES, dtype=torch.float64)
    every = bk.explain(model, x, [list(range(CLASSES))] * IMAGES).weights
    found = bk.explain(model, x, directions)
    assert_close(found.weights, torch.einsum("tk,nkchw->ntchw", directions, every))
    assert_close(found.contributions.sum((2, 3)), found.logits @ directions.t(), 1e-11)


def test_an_output_is_named_or_computed():
    model, x = made("bcos"), example("bcos")
    features = bk.explain(model, x, [[0, 7]] * IMAGES, output="1")
    assert_close(features.logits, model[1](model[0](x)).sum((2, 3)).detach())
    first = bk.explain(model[:2].eval(), x, [[0, 7]] * IMAGES)
    assert_close(features.weights, first.weights)
    computed = bk.explain(model, x, 1, output=lambda model, x: model(2 * x))
    assert_close(computed.weights, 2 * bk.explain(model, 2 * x, 1).weights)
    tokens = made("tokens")
    named = bk.explain(tokens, example("tokens"), 3, output="attention")
    assert_close(named.logits, tokens.attention(example("tokens")).sum(1).detach())


def test_contributions_alone():
    model, x = made("bcos"), example("bcos")
    lean, full = (bk.explain(model, x, "top3", weights=weights) for weights in (False, True))
    assert lean.weights is None and torch.equal(lean.contributions, full.contributions)
    with pytest.raises(ValueError, match="weights=False"):
        lean.rgba()


@pytest.mark.parametrize("name", ["bcos", "model guidance", "first version"])
def test_explanations_can_be_differentiated(name):
    """The gradient of a loss on explanations: the double backward of the model in the mode in which it is then."""
    model, x = made(name), example(name)
    found = bk.explain(model, x, [1, 0, 3], create_graph=True)
    mine = by_parameters(found.contributions, model)
    leaf = x.clone().requires_grad_()
    switched(model, True)
    chosen = model(leaf).gather(1, torch.tensor([[1], [0], [3]])).sum()
    (rows,) = torch.autograd.grad(chosen, leaf, create_graph=True)
    switched(model, False)
    theirs = by_parameters((rows * leaf).sum(1), model)
    together = bk.explain(model, x, [[1, 0], [0, 2], [3, 3]], create_graph=True)
    first = by_parameters(together.contributions[:, 0], model)
    assert theirs.norm() > 0
    assert_close(mine, theirs)
    assert_close(first, theirs)


def by_parameters(contributions, model):
    """The gradients of a loss on contributions with respect to all weights, as one vector."""
    found = torch.autograd.grad(contributions.square().sum(), list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def test_a_model_in_training_mode_is_explained_with_a_graph():
    model = made("ours").train()
    assert bk.explain(model, example("ours"), create_graph=True).weights.requires_grad
    assert model.training


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("smooth, percentile", [(15, 99.5), (3, 80), (0, 100)])
def test_pictures_are_those_of_the_reference(smooth, percentile):
    model, x = made("bcos"), example("bcos")
    found = bk.explain(model, x, "top2")
    pictures = found.rgba(smooth, percentile)
    for n in range(IMAGES):
        for t in range(2):
            theirs = reference.gradient_to_image(x[n], found.weights[n, t], smooth, percentile)
            assert abs(pictures[n, t].numpy() - theirs).max() < 1e-14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("percentile", [0, 12.5, 50, 99, 99.5, 100])
def test_the_opaque_limit_is_the_quantile(percentile, dtype):
    alpha = torch.rand(2, 3, 1, 13, 17, dtype=dtype)
    expected = torch.quantile(alpha.flatten(2), percentile / 100, dim=2)
    assert torch.equal(opacity_limit(alpha, percentile)[..., 0, 0, 0], expected)
    assert torch.equal(opacity_limit(alpha[..., :1, :1], percentile), alpha[..., :1, :1])


def test_a_figure_has_a_row_for_each_image_and_class(tmp_path):
    model, x = made("bcos"), example("bcos")
    found = bk.explain(model, x, "top2")
    shown = found.plot(3, names="abcde")
    assert len(shown.axes) == IMAGES * 2 * 3
    assert shown.axes[1].get_title() == f"explanation: {'abcde'[found.targets[0, 0]]}"
    shown.savefig(tmp_path / "figure.png")
    assert len(bk.explain(model, x, [(0, 1)], weights=False).plot().axes) == 2
    assert bk.explain(model, x, torch.ones(1, CLASSES)).plot().axes[1].get_title() == "explanation: direction 0"
    with pytest.raises(ValueError, match="names has no name for class"):
        found.plot(names={})
    with pytest.raises(ValueError, match=r"plot\(\) needs images"):
        bk.explain(made("tokens"), example("tokens")).plot()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"smooth": 4}, "smooth=4: 0 or an odd"),
        ({"smooth": -1}, "smooth=-1"),
        ({"smooth": 1.5}, "smooth=1.5"),
        ({"alpha_percentile": 101}, "alpha_percentile=101"),
    ],
)
def test_bad_options_of_a_picture(options, words):
    with pytest.raises(ValueError, match=words):
        bk.explain(made("bcos"), example("bcos")).rgba(**options)


# ------------------------------------------------------------------------------------------------ what stays


def states(model):
    return [
        (module.training, getattr(module, "detach", None), copy.copy(vars(module).get("state")))
        for module in model.modules()
    ]


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_modes_and_flags_stay_as_they_were_also_after_an_error(name, on):
    model, x = made(name), example(name)
    switched(model, on)
    parameters = list(model.parameters())
    parameters[0].requires_grad_(False)
    before = states(model), [p.requires_grad for p in parameters]
    bk.explain(model, x)
    with pytest.raises(ValueError, match="out of range"):
        bk.explain(model, x, 99)
    with pytest.raises(ZeroDivisionError):
        bk.explain(model, x, output=lambda model, x: 1 / 0)
    assert before == (states(model), [p.requires_grad for p in parameters])
    assert all(p.grad is None for p in parameters) and not x.requires_grad and x.grad is None
    with explanation_mode(model):
        inside = states(model)
    switched(model, True)
    assert inside == states(model)


@pytest.mark.parametrize("name", ["bcos", "first version", "model guidance"])
def test_threads_that_explain_one_model_at_a_time(name):
    """The mode lasts until the last of them leaves it, and then is what the first one found."""
    model = made(name)
    before = states(model)
    entered, left = threading.Event(), threading.Event()

    def other():
        with explanation_mode(model), explanation_mode(model):
            entered.set()
            assert left.wait(10)
            seen.append(states(model))
        seen.append(states(model))

    seen: list = []
    thread = threading.Thread(target=other)
    with explanation_mode(model):
        inside = states(model)
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert inside != before and seen == [inside, before] and states(model) == before


@pytest.mark.parametrize("name", ["bcos", "first version", "model guidance"])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0)])
def test_generators_that_leave_the_mode_in_any_order(name, order):
    """The mode lasts until the last of them leaves it, also where the model was changed in between."""
    model = made(name)
    before = states(model)

    def using():
        with explanation_mode(model):
            yield

    users = [using() for _ in order]
    for user in users:
        next(user)
    inside = states(model)
    for user in order[:-1]:
        users[user].close()
        assert states(model) == inside != before
    users[order[-1]].close()
    assert states(model) == before
    with explanation_mode(model):
        switched(model, False)
        with explanation_mode(model):
            assert states(model) == inside
        assert states(model) == before


def test_images_of_inference_mode_and_calls_within_no_grad():
    model, x = made("bcos"), example("bcos")
    expected = bk.explain(model, x).weights
    with torch.inference_mode():
        assert torch.equal(bk.explain(model, x.clone()).weights, expected)
    with torch.no_grad():
        assert torch.equal(bk.explain(model, x).weights, expected)
        assert not torch.is_grad_enabled()


def test_the_default_chunk_keeps_gradients_small_and_rows_many(monkeypatch):
    x = torch.rand(4, 6, 32, 32, requires_grad=True)
    model = nn.Sequential(bk.BcosConv2d(6, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8000))
    y = model(x)
    largest = (
        4 * 8 * 32 * 32 * 4
    )  # the first layer's output; the gradient of the last weight, which is larger, is not formed
    for rows, expected in ((0.5, 1), (3.5, 1), (4.5, 4), (20.5, 20)):
        monkeypatch.setattr(passes, "MAPPED", int(rows * largest))
        assert passes.default_chunk(y, x, 1000) == expected
    assert passes.default_chunk(y, x, 5) == 5 and passes.default_chunk(y, x, 3) == 1


def test_the_default_chunk_of_a_gpu_fits_into_its_free_memory(monkeypatch):
    x = torch.rand(4, 6, 32, 32, requires_grad=True)
    y = bk.BcosConv2d(6, 8, 3, padding=1)(x).sum((2, 3))
    of_one = passes.LIVE * 4 * 8 * 32 * 32 * 4
    for free, expected in ((0, 1), (3.5 * of_one / passes.SHARE, 3), (1e12, passes.ENOUGH // 4)):
        monkeypatch.setattr(passes, "_free_bytes", lambda device, free=free: int(free))
        monkeypatch.setattr(passes, "_on_cpu", lambda x: False)
        assert passes.default_chunk(y, x, 1000) == expected


def test_a_model_without_a_backward_of_several_rows():
    """A checkpoint forms its tensors again within vmap, where they are others."""
    model = bk.accelerate(made("bcos"))
    checkpointed = nn.Sequential(copy.deepcopy(model)).eval()
    checkpointed.forward = lambda x: checkpoint(checkpointed[0], x, use_reentrant=False)
    x = example("bcos")
    told = r"the backward of 5 rows at once failed \(.+\): chunk=1 forms them one by one"
    with pytest.raises(RuntimeError, match=told):
        bk.explain(checkpointed, x, "top5")
    assert torch.equal(
        bk.explain(checkpointed, x, "top5", chunk=1).weights, bk.explain(model, x, "top5", chunk=1).weights
    )


def test_a_backward_forms_no_more_rows_than_a_chunk(monkeypatch):
    model, x, sizes, backward = made("bcos"), example("bcos"), [], passes.backward

    def counted(logits, x, gradients, *options):
        sizes.append(len(gradients))
        return backward(logits, x, gradients, *options)

    monkeypatch.setattr(passes, "backward", counted)
    bk.explain(model, x, "top5", chunk=2)
    bk.explain(model, x, [(0, 1), (2, 0), (0, 3), (0, 2)], chunk=2)
    assert sizes == [2, 2, 1, 2, 1]
