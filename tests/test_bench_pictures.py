"""The pictures of ``bench report``: what they show stands where it was measured, and no two labels overlap."""

import copy

import numpy as np
import pytest
from made_results import made
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from bcos_kernels.cli.bench import plots, results, tables


def test_layers_are_drawn_at_their_ratios_on_a_log_axis():
    axes = plots.layers(made()).axes
    assert [ax.get_yscale() for ax in axes] == ["log"] * 3
    for ax, measure in zip(axes, tables.MEASURES, strict=True):
        expected = sorted(results.ratio(r, "ours", "plain") for r in results.main_rows(made(), "layer", measure))
        (ours,) = (line for line in ax.lines if line.get_marker() == plots.LOOKS["ours"].marker)
        assert sorted(ours.get_ydata()) == pytest.approx(expected)
        assert any(set(line.get_ydata()) == {1} for line in ax.lines)
        low, high = ax.get_ylim()
        assert low < min(expected) and max(expected) < high


def test_bars_start_at_zero_and_are_as_high_as_measured():
    figure = plots.headline(made())
    assert all(ax.get_ylim()[0] == 0 for ax in figure.axes)
    rows = results.main_rows(made(), "model", "training")
    expected = sorted(results.ratio(r, c, "plain") for r in rows for c in ("reference", "compiled", "ours"))
    assert sorted(bar.get_height() for bar in figure.axes[0].patches) == pytest.approx(expected)


def test_contenders_differ_without_colour():
    for kind in ("name", "colour", "marker", "dashes"):
        assert len({str(getattr(look, kind)) for look in plots.LOOKS.values()}) == len(plots.LOOKS)
    compared = [plots.LOOKS[c].hatch for c in ("reference", "compiled", "ours")]
    assert len(set(compared)) == len(compared)


def test_pictures_carry_their_conditions():
    for picture in plots.PICTURES.values():
        texts = picture(made(gpu=True)).texts
        text = " ".join(t.get_text().replace("\n", " ") for t in texts)
        for part in ("NVIDIA H200", "driver 570.1", "torch 2.13.0", "bf16", "commit 431f4d43a6", "Complete."):
            assert part in text
        # a command may have several dollars, as in --layers 'a$|b$', which is no formula
        assert not any(t.get_parse_math() for t in texts if "commit" in t.get_text())


def test_pictures_say_that_their_times_are_too_noisy():
    for picture in plots.PICTURES.values():
        told = picture(made() | {"load": {"before": 2.0, "during": 0.0}}).texts[-1].get_text().replace("\n", " ")
        assert "No verdict on times, they are too noisy: other programs kept 2.0 of 2 cores busy before" in told
        assert "No verdict" not in picture(made()).texts[-1].get_text()


def test_pictures_without_rows_are_left_out():
    run = made() | {"rows": results.main_rows(made(), "model", "inference")}
    assert plots.draw(run) == {}


def test_every_layer_is_below_its_roof_in_the_colour_of_its_operator():
    axes = plots.roofline(made()).axes
    rows = results.main_rows(made(), "layer", "training")
    for kind, colour in plots.OPERATORS.items():
        own = [row for row in rows if tables.operator(row) == kind]
        expected = sorted(row["floor"]["flops"] / tables.seconds(row, "ours") for row in own)
        found = [line.get_ydata() for line in axes[-1].lines if line.get_color() == colour]
        assert sorted(np.concatenate([*found, []])) == pytest.approx(expected)
        in_legend = [handle.get_color() for handle in axes[0].figure.legends[0].legend_handles]
        assert bool(own) == (colour in in_legend)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("resnet50/56x56-64-k3s1-64", "convolution"),
        ("resnet50/56x56-64-k1s1-256", "1×1 convolution"),
        ("resnext50/28x28-256-g32k3s1-256", "grouped convolution"),
        ("convnext_t/28x28-192-dw7s1-192", "depthwise convolution"),
        ("vit_s/1568-384-1536", "linear"),
        ("vit_s/norm-1568-384", ""),
    ],
)
def test_the_name_of_a_layer_tells_its_operator(name, kind):
    assert tables.operator({"workload": name}) == kind


def test_curves_are_relative_to_plain():
    axes = plots.scaling(made()).axes
    rows = [row for row in made()["rows"] if row["scaling"] == "batch"]
    expected = [results.ratio(row, "ours", "plain") for row in sorted(rows, key=lambda row: row["batch"])]
    (ours,) = (line for line in axes[0].lines if line.get_marker() == plots.LOOKS["ours"].marker)
    assert list(ours.get_ydata()) == pytest.approx(expected)
    assert any(set(line.get_ydata()) == {1} for line in axes[0].lines)


def short_neighbours(run) -> list[dict]:
    """The norms of two models: a few layers each, with a long name."""
    rows = [row for row in results.main_rows(run, "layer") if row["model"] == "vit_s"][:6]
    return [
        row | {"workload": f"{model}/norm-{i}-384", "model": model, "group": f"{title}, norms"}
        for model, title in (("densenet121", "DenseNet-121"), ("vitc_s", "ViTC-S"))
        for i, row in enumerate(rows)
    ]


def labels(figure) -> list[Text]:
    """All texts that are drawn; of the labels of ticks those within the axes."""
    hidden: set[Text] = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            hidden.update(tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high)
        hidden.update(ax.findobj(Text) if not ax.get_visible() else [])
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in hidden]


@pytest.mark.parametrize("picture", plots.PICTURES)
def test_no_two_labels_overlap(picture):
    figure = plots.PICTURES[picture](made() | {"rows": [*made()["rows"], *short_neighbours(made())]})
    check_labels(figure)


def test_no_two_labels_of_ratios_far_apart_overlap():
    run = copy.deepcopy(made())
    for factor, name in ((0.1, "ours"), (50, "reference")):
        for row in results.main_rows(run, "layer"):
            row["contenders"][name]["samples"] = [factor * t for t in row["contenders"]["plain"]["samples"]]
    check_labels(plots.layers(run))


def check_labels(figure):
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in labels(figure)]
    assert len(boxes) > 10
    for i, (text, box) in enumerate(boxes):
        for other, its in boxes[:i]:
            shared = Bbox.intersection(box, its)
            assert shared is None or min(shared.width, shared.height) < 2, (text, other)  # pixels


def test_panels_without_rows_are_left_out():
    """A quick run measures one model's explanation, and nothing of its training."""
    run = made() | {"rows": results.main_rows(made(), "model", "explanation")[:1]}
    (ax,) = plots.headline(run).axes
    assert ax.get_ylabel().startswith("explanation") and len(ax.patches) == 3
    assert plots.layers(run) is plots.roofline(run) is plots.scaling(run) is None
