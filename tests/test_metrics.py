"""GridPG and EPG: numbers of the authors' own code, the formulas on made-up maps, and bad input.

The facts were computed once, on the CPU in float64 with torch 2.13: ``LocalisationAnalyser`` of B-cos-v2
(``interpretability/analyses/localisation.py``) ran on the model, the images and the labels of ``localisation_facts``,
with an explainer that multiplies the image with its gradient in explanation mode, one class at a time; and
``BoundingBoxEnergyMultiple`` of model guidance (``metrics.py``) on the maps of the labels of the first 40 images.
"""

import math

import localisation_facts as facts
import numpy as np
import pytest
import torch

import bcos_kernels as bk
from bcos_kernels import metrics


@pytest.fixture(scope="module")
def model():
    return facts.model()


@pytest.fixture(scope="module")
def images():
    return facts.images()


@pytest.fixture(scope="module")
def labels(model, images):
    return facts.labels(model, images)


GRIDS = {  # cells, grids, smoothing, threshold -> the first images of the selection, values, their mean, weighted sum
    (4, 12, 0, 0.5): (
        [80, 204, 205, 22], [0.737059611053, 0.556599670647, 0.838982399933, 0.402435052922, 0.436322507331],
        0.5456823821105933, 599.5283557535467,
    ),
    (4, 10, 5, 0.8): (
        [80, 204, 205, 22], [0.971344350894, 0.0, 1.0, 0.773106503725, 1.0, 0.444687435512],
        0.5394521100135942, 392.6074140398774,
    ),
    (9, 5, 15, 0.5): (
        [80, 204, 205, 22, 38, 149, 79, 85, 201], [0.973950094583, 0.0, 0.0, 0.0, 0.0, 0.139183131315],
        0.14532674427910672, 121.5126454199825,
    ),
}  # fmt: skip


@pytest.mark.parametrize("setting", GRIDS)
def test_grids_have_the_numbers_of_the_authors_code(setting, model, images, labels):
    cells, count, smooth, threshold = setting
    first, values, mean, weighted = GRIDS[setting]
    with torch.no_grad():
        logits = model(images)
    grids = metrics.select_grids(logits, labels, cells, count, threshold)
    assert grids[0] == first and len(grids) == count
    found = []
    for grid in grids:
        explained = bk.explain(model, metrics.make_grid(images[grid])[None], labels[grid][None])
        found.append(metrics.grid_pointing(explained.contributions, smooth)[0])
    found = torch.cat(found)
    assert found[: len(values)].tolist() == pytest.approx(values, abs=1e-11)
    assert found.mean().item() == pytest.approx(mean, abs=1e-12)
    assert (found * torch.arange(len(found))).sum().item() == pytest.approx(weighted, abs=1e-9)


def test_boxes_have_the_numbers_of_the_authors_code(model, images, labels):
    boxes = [
        [(n % 4, n % 3, 4 + n % 4, 5 + n % 3), *([(0, 0, 3, 2)] if n % 2 else [])] for n in range(40)
    ]  # of an odd image a second one, which may overlap the first
    maps = bk.explain(model, images[:40], labels[:40]).contributions[:, 0]
    found = metrics.energy_pointing(maps, boxes)
    facts_of_first = [0.24228067713981913, 0.4581076363635621, 0.139968735160999, 0.5276947446749507]
    assert found[:4].tolist() == pytest.approx(facts_of_first, abs=1e-12)
    assert found.mean().item() == pytest.approx(0.2540686062809486, abs=1e-12)
    limited = metrics.energy_pointing(maps, boxes, min_box_size=21, max_box_size=24)
    assert limited[~limited.isnan()].tolist() == pytest.approx([0.4715547119113255, 0.0, 0.12023994504624501])
    assert limited.nanmean().item() == pytest.approx(0.1972648856525235, abs=1e-12)


def test_grids_end_when_no_more_classes_are_left_than_a_grid_has_cells():
    """As the authors' loop does: with as many classes as cells there is no choice, and no grid."""
    labels = torch.arange(5).repeat(3)
    logits = torch.eye(5)[labels] * 9
    assert len(metrics.select_grids(logits, labels, 4)) == 2
    chosen = labels < 4
    assert metrics.select_grids(logits[chosen], labels[chosen], 4) == []


def test_a_grid_is_filled_from_top_to_bottom():
    images = torch.arange(9.0).view(9, 1, 1, 1).expand(9, 2, 3, 5)
    grid = metrics.make_grid(images)
    assert grid.shape == (2, 9, 15)
    assert grid[0, ::3, ::5].tolist() == [[0, 3, 6], [1, 4, 7], [2, 5, 8]]
    assert torch.equal(metrics.make_grid(images.expand(2, 3, 9, 2, 3, 5))[1, 2], grid)


def test_a_map_within_its_cell_points_at_it():
    maps = torch.full((2, 4, 6, 8), -1.0)
    maps[0, 1, 3:, :4] = 2.0  # image 1 lies at the bottom left
    maps[0, 2, :3, 2:6] = 1.0  # image 2 lies at the top right: half of it
    shares = metrics.grid_pointing(maps)
    assert shares.tolist() == [[0, 1, 0.5, 0], [0, 0, 0, 0]]


def test_smoothing_pads_with_zeros():
    maps = torch.zeros(1, 4, 4, 4)
    maps[0, 0, 1, 1] = 9.0
    assert metrics.grid_pointing(maps, smooth=3)[0, 0] == pytest.approx(4 / 9)
    assert metrics.energy_pointing(maps[0, :1], [[(0, 0, 1, 4)]], smooth=3).item() == pytest.approx(1 / 3)


def test_boxes_that_overlap_count_once_and_maps_without_energy_are_zero():
    maps = torch.ones(3, 4, 4)
    maps[1] = -1
    found = metrics.energy_pointing(maps, [[(0, 0, 2, 2), (1, 1, 3, 3)], [(0, 0, 4, 4)], []])
    assert found.tolist() == [7 / 16, 0, 0]
    assert math.isnan(metrics.energy_pointing(maps[:1], [[]], min_box_size=1).item())


def test_boxes_are_scaled_as_in_model_guidance():
    boxes = [(10, 20, 500, 375)]
    assert metrics.scaled_boxes(boxes, (500, 375), (224, 224)) == [(4, 11, 223, 223)]


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: metrics.grid_pointing(torch.ones(1, 5, 4, 4)), "a grid of 5 images: a square number"),
        (lambda: metrics.grid_pointing(torch.ones(1, 4, 5, 4)), r"\(1, 4, 5, 4\): 2 cells do not divide"),
        (lambda: metrics.grid_pointing(torch.ones(4, 4)), r"contributions has shape \(4, 4\)"),
        (lambda: metrics.grid_pointing(torch.ones(4, 4, 4), smooth=2), "smooth=2"),
        (lambda: metrics.make_grid(torch.ones(6, 4, 4)), r"images has shape \(6, 4, 4\)"),
        (lambda: metrics.energy_pointing(torch.ones(2, 4, 4), [[]]), "boxes 1 lists"),
        (lambda: metrics.energy_pointing(torch.ones(1, 4, 4), [[(0, 0, 1.5, 2)]]), "four ints"),
        (lambda: metrics.energy_pointing(torch.ones(1, 4, 4), [[(0, 0, -1, 2)]]), "four ints"),
        (lambda: metrics.energy_pointing(torch.ones(1, 4, 4), [[(2, 0, 1, 2)]]), "ends before it starts"),
        (lambda: metrics.select_grids(torch.ones(3, 2), torch.ones(2), 4), "logits has shape"),
        (
            lambda: metrics.select_grids(torch.eye(9), torch.arange(9), 4, 5),
            "count=5: 9 images make only 1 grid of 4 cells, which take images of different classes",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda maps: metrics.grid_pointing(maps), "contributions"),
        (lambda maps: metrics.energy_pointing(maps, [[]] * 4), "contributions"),
        (lambda maps: metrics.make_grid(maps), "images"),
        (lambda maps: metrics.select_grids(maps, torch.arange(4), 4), "logits"),
        (lambda maps: metrics.select_grids(torch.eye(4), maps, 4), "labels"),
    ],
)
def test_what_is_no_tensor_is_named(call, name):
    with pytest.raises(TypeError, match=f"^{name}: a Tensor is needed, not ndarray"):
        call(torch.ones(4, 4, 4).numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1.0, 1e-7])
def test_maps_in_half_precision_have_the_shares_of_their_values(dtype, size):
    """The sum of ones over 768 pixels squared is infinite in float16, and the means of small values are 0."""
    maps = torch.full((4, 768, 768), size, dtype=dtype)
    maps[:, 384:] *= 2
    for smooth in (0, 5):
        found = metrics.grid_pointing(maps, smooth)
        assert torch.equal(found, metrics.grid_pointing(maps.float(), smooth))
    shares = metrics.energy_pointing(maps, [[(0, 0, 384, 384)]] * 4)
    assert torch.equal(shares, metrics.energy_pointing(maps.float(), [[(0, 0, 384, 384)]] * 4))
    assert shares.allclose(torch.full((4,), 1 / 6))


def test_what_is_not_a_number_is_not_0():
    maps = torch.rand(2, 4, 4, 4)
    maps[0, 1, 0, 0] = math.nan
    assert metrics.grid_pointing(maps).isnan().tolist() == [[False, True, False, False], [False] * 4]
    assert metrics.energy_pointing(maps[0], [[(2, 2, 4, 4)]] * 4).isnan().tolist() == [False, True, False, False]


def test_boxes_of_numpy_and_of_tensors():
    maps, boxes = torch.rand(2, 6, 6), [[(0, 1, 4, 5)], [(2, 2, 3, 6), (0, 0, 1, 1)]]
    expected = metrics.energy_pointing(maps, boxes)
    for kind in (np.array, torch.tensor):
        assert torch.equal(metrics.energy_pointing(maps, [kind(of_map) for of_map in boxes]), expected)
    with pytest.raises(ValueError, match="four ints of at least 0"):
        metrics.energy_pointing(maps[:1], [torch.rand(1, 4)])
