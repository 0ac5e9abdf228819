"""The candidate tma: 1×1 convolutions and linear layers by Triton's kernels with tensor descriptors.

In the interpreter two or four programs take all tiles, so that each has several.
"""

from dataclasses import replace

import pairs_checks
import pytest
import torch
from cases import Case, error
from pairs_checks import check_pair, formed  # noqa: F401
from parity import check
from where import BACKENDS, DEVICE, STANDS_IN

from bcos_kernels.core import choice, dispatch
from bcos_kernels.transform import TRANSFORM, Inputs, Outputs
from bcos_kernels.transform.call import of_shapes
from bcos_kernels.transform.triton import tma_tiles

HALVES = (torch.bfloat16, torch.float16)
ROOTED = {"norm_eps": (1e-6, 0.0)}
"""An epsilon under the root: without one, the vendor alone trains linear layers with a bias."""
CASES = {
    "conv": Case("conv", (3, 72, 9, 11), (136, 72, 1, 1)),
    "linear": Case("linear", (200, 136), (24, 136)),
    "one row": Case("one row", (1, 8), (8, 8)),
    "seven blocks": Case("seven blocks", (70, 40), (200, 40)),
    "bias": Case("bias", (2, 24, 9, 9), (72, 24, 1, 1), {"normalize_weights": False}, True),
    "bias, unit": Case("bias, unit", (70, 24), (72, 24), ROOTED, True),
    "b1": Case("b1", (70, 24), (72, 24), {"b": 1}),
    "explain": Case("explain", (2, 72, 6, 6), (72, 72, 1, 1), {"detach": True}),
    "quirk": Case("quirk", (70, 24), (72, 24), {"norm_eps": (1e-6, 1e-3)}),
}
WITH_VENDOR = {
    "conv": CASES["conv"],
    "narrowing": Case("narrowing", (3, 264, 5, 9), (72, 264, 1, 1)),
    "narrowing, raw": Case("narrowing, raw", (70, 264), (136, 264), {**ROOTED, "normalize_weights": False}, True),
    "b1.5, bias": Case("b1.5, bias", (70, 264), (72, 264), {**ROOTED, "b": 1.5}, True),
    "b2.5, wide": Case("b2.5, wide", (70, 24), (136, 24), {"b": 2.5}),
    "bias": CASES["bias"],
    "b1": CASES["b1"],
    "explain": CASES["explain"],
    "quirk": CASES["quirk"],
}
STRIDED = {
    "two pixels side by side": Case("two", (2, 24, 6, 12), (40, 24, 1, 1), {"stride": 2}),
    "one pixel": Case("one", (3, 264, 6, 6), (72, 264, 1, 1), {"stride": 2}),
    "a row": Case("a row", (2, 40, 9, 32), (24, 40, 1, 1), {"stride": (3, 2), "b": 1.5}, True),
    "one axis": Case("one axis", (1, 16, 4, 5), (72, 16, 1, 1), {"stride": (2, 1), "detach": True}),
    "b1": Case("b1", (2, 16, 4, 4), (8, 16, 1, 1), {"stride": 2, "b": 1}),
}
EXPLAINED = {
    "b2": Case("b2", (3, 72, 9, 11), (136, 72, 1, 1)),
    "linear": Case("linear", (200, 136), (24, 136)),
    "one row": Case("one row", (1, 8), (8, 8)),
    "b1": Case("b1", (70, 72), (136, 72), {"b": 1}),
    "b1.5": Case("b1.5", (130, 72), (136, 72), {"b": 1.5}),
    "b2.5, bias": Case("b2.5, bias", (70, 136), (72, 136), {"b": 2.5}, True),
    "b2.5, bias, wide": Case("b2.5, bias, wide", (70, 24), (136, 24), {"b": 2.5}, True),
    "bias, wide": Case("bias, wide", (130, 72), (200, 72), {"normalize_weights": False}, True),
}

SEEDS = range(2) if STANDS_IN else range(5)


def typed(cases: dict[str, Case]) -> list[tuple[str, torch.dtype]]:
    """Names and dtypes: all of them on a GPU; a stand-in sees each case with another dtype."""
    if not STANDS_IN:
        return [(name, dtype) for name in cases for dtype in HALVES]
    return [(name, HALVES[index % 2]) for index, name in enumerate(cases)]


if "triton" in BACKENDS:

    @pytest.fixture(autouse=True)
    def backend(monkeypatch):
        """Triton alone has the candidate."""
        monkeypatch.setattr(dispatch, "FORCED", "triton")

    def serving(name):
        """A fixture: the candidate serves what it can, and the fixture's value tells who served a direction last."""

        @pytest.fixture
        def served():
            with choice.forced(name) as chosen:
                yield lambda direction: str(chosen[direction][1].candidate)

        return served

    tma, with_vendor = serving("tma"), serving("tma-vendor")

    @pytest.mark.parametrize("name, dtype", typed(CASES))
    def test_against_float64(name, dtype, tma):
        case = CASES[name]
        check(case, None, dtype, device=DEVICE, seeds=SEEDS, formats=(True,))
        assert tma("forward") == tma("training") == "triton tma"

    @pytest.mark.parametrize("name, dtype", typed(WITH_VENDOR))
    def test_with_the_vendor_against_float64(name, dtype, with_vendor):
        check(WITH_VENDOR[name], None, dtype, device=DEVICE, seeds=SEEDS, formats=(True,))
        assert with_vendor("training") == "triton tma-vendor"

    @pytest.mark.parametrize("name, dtype", typed(STRIDED))
    def test_strides_against_float64(name, dtype, with_vendor):
        """The forward and the explanation are tma's; no copy of the pixels that are seen is made."""
        case = STRIDED[name]
        check(case, None, dtype, device=DEVICE, seeds=SEEDS, formats=(True,))
        assert with_vendor("training") == "triton tma-vendor"
        with choice.forced("tma") as chosen:
            ours, exact, theirs = explanation(case, dtype)
        assert {str(c.candidate) for _, c in chosen.values()} == {"triton tma"}
        for mine, truth, reference in zip(ours, exact, theirs, strict=True):
            assert error(mine, truth) <= 1.1 * error(reference, truth) + torch.finfo(dtype).eps

    @pytest.mark.parametrize("candidate", ["tma", "tma-vendor"])
    def test_pixels_that_a_stride_leaves_out_reach_nothing(candidate):
        """NaN there reaches neither y nor a gradient, and dx is exactly 0 there."""
        case = Case("left out", (2, 24, 6, 4), (40, 24, 1, 1), {"stride": (3, 2), "detach": candidate == "tma"})
        x, weight, _ = case.inputs(torch.bfloat16, channels_last=True)
        poisoned = torch.full_like(x, float("nan"))
        poisoned[:, :, ::3, ::2] = x[:, :, ::3, ::2].detach()
        found = []
        with choice.forced(candidate) as chosen:
            for given in (x, poisoned):
                leaves = given.detach().to(DEVICE).requires_grad_(), weight.detach().to(DEVICE)
                leaves[1].requires_grad_(candidate != "tma")
                y = case(*leaves, None)
                found.append((y, *torch.autograd.grad(y, [t for t in leaves if t.requires_grad], torch.ones_like(y))))
        assert str(chosen["explanation" if candidate == "tma" else "training"][1].candidate) == f"triton {candidate}"
        assert all(map(torch.equal, *found))
        dx = found[0][1].clone()
        assert dx[:, :, ::3, ::2].all()
        dx[:, :, ::3, ::2] = 0
        assert not dx.any()

    def explanation(case: Case, dtype: torch.dtype):
        """(y, dx) with the scale frozen, without a gradient of the weight, and the same in float64."""
        case = replace(case, options={**case.options, "detach": True})
        x, weight, bias = (None if t is None else t.detach() for t in case.inputs(dtype, channels_last=True))
        grad = torch.randn(case.naive(x, weight, bias).shape).to(dtype)
        found = []
        for call, kind, where in (
            (case, dtype, DEVICE),
            (case.naive, torch.float64, "cpu"),
            (case.naive, dtype, "cpu"),
        ):
            mine, w, b = (None if t is None else t.to(where, kind) for t in (x, weight, bias))
            y = call(mine.requires_grad_(), w, b)
            found.append((y.detach().cpu(), torch.autograd.grad(y, mine, grad.to(where, kind))[0].cpu()))
        return found

    @pytest.mark.parametrize("name, dtype", typed(EXPLAINED))
    def test_explanation_against_float64(name, dtype, tma):
        ours, exact, theirs = explanation(EXPLAINED[name], dtype)
        assert tma("explanation") == "triton tma"
        for mine, truth, reference in zip(ours, exact, theirs, strict=True):
            assert error(mine, truth) <= 1.1 * error(reference, truth) + torch.finfo(dtype).eps

    def test_a_pair_with_the_vendor(with_vendor, formed, monkeypatch):
        monkeypatch.setitem(pairs_checks.LAYERS, "aligned", lambda: pairs_checks.L.BcosConv2d(16, 8, 1))
        check_pair("aligned", "batch", torch.bfloat16, torch.channels_last, "training", DEVICE, formed)
        assert with_vendor("training") == "triton tma-vendor"

    @pytest.mark.parametrize("mode", ["training", "explanation"])
    def test_pairs(mode, tma, formed, monkeypatch):
        """The map of the norm behind a layer is applied where the gradient is read."""
        monkeypatch.setitem(pairs_checks.LAYERS, "aligned", lambda: pairs_checks.L.BcosConv2d(16, 8, 1))
        check_pair("aligned", "batch", torch.bfloat16, torch.channels_last, mode, DEVICE, formed)
        assert tma("training") == "triton tma"

    @pytest.mark.parametrize(
        "name, direction, options, bias, with_map, dtype",
        [
            (*case, with_map, dtype)
            for *case, with_map in (
                ("plain", "training", {}, False, False),
                ("raw", "training", {"normalize_weights": False}, True, False),
                ("detached", "training", {"detach": True}, False, False),
                ("plain", "explanation", {}, False, False),
                ("b1.5", "explanation", {"b": 1.5}, True, False),
                ("map", "training", {}, False, True),
                ("map", "explanation", {}, False, True),
            )
            for dtype in HALVES
            if dtype == torch.bfloat16 or not with_map  # a layer whose output is fp16 takes no map
        ],
    )
    def test_l_is_formed_again(name, direction, options, bias, with_map, dtype, tma):
        """The gradients are those of the saved output, in whose place and in that of a saved l stands NaN."""
        training = direction == "training"
        case = Case(name, (150, 40), (120, 40), options, bias)
        x, weight, bias_ = (None if t is None else t.detach().to(DEVICE) for t in case.inputs(dtype))
        spec = {"unit": options.get("normalize_weights", True), "b": options.get("b", 2.0)}
        spec |= {"detach": not training or options.get("detach", False)}
        call = of_shapes(case.x, case.weight, device=DEVICE, dtype=dtype, bias=bias, **spec)
        candidate = next(c for c in TRANSFORM.candidates_of("triton") if c.name == "tma")
        inputs, needs = Inputs(x, weight, bias_, None), (True, training, training and bias, False)
        saved = Outputs(*candidate.forward(inputs, call, None))
        grad = torch.randn_like(saved.y)
        lost = saved._replace(y=torch.full_like(saved.y, float("nan")), l=torch.full_like(saved.l, float("nan")))
        frozen = bool(spec["detach"])
        given = {"gradient_map": torch.randn(4, case.weight[0], device=DEVICE)} if with_map else {}
        found = candidate.backward(grad, inputs, lost, call, None, frozen, needs, **given)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tma_tiles, "forms_l", lambda *_: False)
            expected = candidate.backward(grad, inputs, saved, call, None, frozen, needs, **given)
        for mine, other, needed in zip(found, expected, needs, strict=True):
            if needed:
                assert error(mine, other) < 2 * torch.finfo(dtype).eps  # the saved output is rounded

    def test_an_explanation_through_a_map(tma):
        case = EXPLAINED["b2"]
        x, weight, _ = (None if t is None else t.detach().to(DEVICE) for t in case.inputs(torch.bfloat16, 0, True))
        call = of_shapes(case.x, case.weight, device=DEVICE)
        candidate = next(c for c in TRANSFORM.candidates_of("triton") if c.name == "tma")
        inputs = Inputs(x, weight, None, None)
        saved = Outputs(*candidate.forward(inputs, call, None))
        grad, given = torch.randn_like(saved.y), torch.randn(4, case.weight[0], device=DEVICE)
        of_grad, of_y, mean, constant = given[:, None, :, None, None]
        passed = (grad.float() * of_grad + (saved.y.float() - mean) * of_y + constant).to(grad.dtype)
        needs = (True, False, False, False)
        mapped, *_ = candidate.backward(grad, inputs, saved, call, None, True, needs, gradient_map=given)
        plain, *_ = candidate.backward(passed, inputs, saved, call, None, True, needs)
        assert error(mapped, plain) < 2 * torch.finfo(torch.bfloat16).eps  # `passed` is rounded

    @pytest.mark.parametrize("name", ["quirk", "bias"])
    def test_partial_gradients(name, tma):
        """Only what is asked for is computed, whatever is asked for, with the same bits."""
        partial_gradients(CASES[name])
        assert tma("training") == "triton tma"

    def test_partial_gradients_with_the_vendor(with_vendor):
        """Without dx, u alone is formed, by the kernel of the scale and with the same bits."""
        partial_gradients(WITH_VENDOR["narrowing, raw"])
        assert with_vendor("training") == "triton tma-vendor"

    def partial_gradients(case: Case):
        inputs = [t.detach().to(DEVICE) for t in case.inputs(torch.bfloat16, 0, True) if t is not None]
        together = [t.clone().requires_grad_() for t in inputs]
        y = case(*together)
        upward = torch.randn_like(y)
        expected = torch.autograd.grad(y, together, upward)
        for i, whole in enumerate(expected):
            alone = [t.clone().requires_grad_(i == j) for j, t in enumerate(inputs)]
            (found,) = torch.autograd.grad(case(*alone), alone[i], upward)
            assert torch.equal(found, whole)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_and_inf_reach_what_they_reach_in_the_reference(value, tma):
        """Their own row of y and dx, and dw, but no row that only shares a tile with them."""
        case = CASES["quirk"]
        x, weight, _ = (t if t is None else t.detach() for t in case.inputs(torch.bfloat16))
        x[3, 2] = value
        ours = [t.to(DEVICE).requires_grad_() for t in (x.clone(), weight.clone())]
        exact = [t.double().requires_grad_() for t in (x, weight)]
        y, truth = case(*ours), case.naive(*exact)
        found = (y, *torch.autograd.grad(y, ours, torch.ones_like(y)))
        expected = (truth, *torch.autograd.grad(truth, exact, torch.ones_like(truth)))
        assert tma("training") == "triton tma"
        for mine, true in zip(found, expected, strict=True):
            assert torch.equal(mine.isfinite().cpu(), true.isfinite()) and not mine.isfinite().all()

    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape).to(torch.bfloat16)

    @pytest.mark.parametrize("shape", [(130, 136, 72), (70, 24, 200), (1, 8, 8)])
    def test_small_integers_are_exact(shape, tma):
        """y in fp32, dx and dw of b = 1 are sums of small integers, which bf16's products hold exactly."""
        rows, channels, filters = shape
        torch.manual_seed(0)
        case = Case("integers", (rows, channels), (filters, channels), {"b": 1, "normalize_weights": False})
        inputs, grad = (integers(rows, channels), integers(filters, channels)), integers(rows, filters)
        for frozen in (False, True):
            ours = [t.to(DEVICE).requires_grad_(t is inputs[0] or not frozen) for t in (t.clone() for t in inputs)]
            ours[0].requires_grad_()
            exact = [t.double().requires_grad_() for t in inputs]
            y, truth = case(*ours, out_dtype=torch.float32, detach=frozen), case.naive(*exact)
            wanted = 1 if frozen else 2
            found = torch.autograd.grad(y, ours[:wanted], grad.to(DEVICE, torch.float32))
            expected = torch.autograd.grad(truth, exact[:wanted], grad.double())
            assert torch.equal(y.cpu().double(), truth)
            for mine, true in zip(found, expected, strict=True):
                assert torch.equal(mine.cpu(), true.to(mine.dtype))

    def test_fp32_outputs_under_autocast(tma):
        """The reference's dtypes: bf16 products, an output in fp32."""
        case = CASES["conv"]
        x, weight, _ = (None if t is None else t.detach().to(DEVICE) for t in case.inputs(torch.float32, 0, True))
        x, weight = x.requires_grad_(), weight.requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            y = case(x, weight)
        grad = torch.randn_like(y)
        found = (y, *torch.autograd.grad(y, (x, weight), grad))
        assert tma("forward") == tma("training") == "triton tma" and y.dtype == torch.float32
        exact = [t.detach().cpu().double().requires_grad_() for t in (x, weight)]
        truth = case.naive(*exact)
        truths = (truth, *torch.autograd.grad(truth, exact, grad.cpu().double()))
        for mine, true in zip(found, truths, strict=True):
            assert error(mine.cpu(), true) < 2 * torch.finfo(torch.bfloat16).eps

    @pytest.mark.parametrize("direction", ["forward", "explanation"])
    def test_every_tile(direction, tma):
        """A tile changes the order of sums, never more."""
        case = Case("tiles", (130, 72) if direction == "forward" else (130, 256), None, {"detach": True})
        case = replace(case, weight=(256, 72) if direction == "forward" else (72, 256))
        x, weight, _ = (None if t is None else t.detach().to(DEVICE) for t in case.inputs(torch.bfloat16))
        first, dx = y_and_dx(case, x, weight)
        with choice.forced(None) as chosen:
            y_and_dx(case, x, weight)
        ways = choice.ways(TRANSFORM, "triton", chosen[direction][0], direction)
        tiles = [tile for candidate, tile in ways if candidate.name == "tma"]
        assert len(set(tiles)) == len(tiles) == 5
        for tile in tiles[1:]:
            with choice.forced("tma", tile if direction == "forward" else None):
                y = case(x.requires_grad_(), weight)
            if direction == "forward":
                assert error(y, first) < 4 * torch.finfo(torch.bfloat16).eps
                continue
            with choice.forced("tma", tile):
                found = torch.autograd.grad(y, x, torch.ones_like(y))[0]
            assert error(found, dx) < 4 * torch.finfo(torch.bfloat16).eps

    @pytest.mark.parametrize("shape", [(130, 256), (2, 256, 16, 16)])
    def test_every_tile_of_dx_and_u(shape):
        """A tile changes the order of sums, never more."""
        options = {} if len(shape) == 2 else {"stride": (2, 2)}
        call = of_shapes(shape, (72, 256, 1, 1)[: len(shape)], device=DEVICE, **options)
        inputs, grad = call.example(torch.device(DEVICE))
        ways = [way for way in choice.ways(TRANSFORM, "triton", call, "training") if way[0].name == "tma-vendor"]
        assert len(set(ways)) == len(ways) == 4
        vendor = next(c for c in TRANSFORM.candidates_of("triton") if c.name == "vendor")
        saved, needs = Outputs(*vendor.forward(inputs, call, None)), (True, True, False, False)
        expected = vendor.backward(grad, inputs, saved, call, None, False, needs)
        for candidate, tile in ways:
            found = candidate.backward(grad, inputs, saved, call, tile, False, needs)
            for mine, theirs in zip(found[:2], expected[:2], strict=True):
                assert error(mine, theirs) < 4 * torch.finfo(torch.bfloat16).eps

    def y_and_dx(case: Case, x, weight):
        y = case(x.requires_grad_(), weight)
        return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]

    def test_every_value_is_written(tma, monkeypatch):
        """New tensors hold NaN, so that a value that no program stores is found."""
        empty = torch.empty

        def poisoned(*arguments, **options):
            made = empty(*arguments, **options)
            return made.fill_(float("nan")) if made.is_floating_point() and made.device.type != "meta" else made

        case = CASES["conv"]
        inputs = [t.detach().to(DEVICE).requires_grad_() for t in case.inputs(torch.bfloat16, 0, True)[:2]]
        monkeypatch.setattr(torch, "empty", poisoned)
        monkeypatch.setattr(torch, "empty_like", lambda t, **options: poisoned(t.shape, dtype=t.dtype, **options))
        y = case(*inputs)
        found = (y, *torch.autograd.grad(y, inputs, torch.ones_like(y)))
        assert tma("training") == "triton tma" and all(t.isfinite().all() for t in found)

    def test_a_view_that_begins_within_a_tensor(tma):
        """TMA takes addresses that are multiples of 16 bytes."""
        case = CASES["quirk"]
        x, weight, _ = (None if t is None else t.detach().to(DEVICE) for t in case.inputs(torch.bfloat16))
        moved = torch.empty(x.numel() + 1, dtype=x.dtype, device=DEVICE)[1:].view(x.shape).copy_(x)
        assert moved.data_ptr() % 16 and torch.equal(case(moved, weight), case(x, weight))
        wide = torch.cat([x, x[:, :1]], 1)[:1, :-1]  # one row, whose stride is no multiple of 16 bytes
        assert torch.equal(case(wide, weight), case(x[:1].clone(), weight)) and tma("forward") == "triton tma"
