"""``python -m bcos_kernels evaluate``: GridPG and EPG of images on disk, and bad input."""

import io
import json
import tarfile

import localisation_facts as facts
import numpy as np
import pytest
import torch
from PIL import Image

import bcos_kernels as bk
from bcos_kernels import metrics
from bcos_kernels.__main__ import main
from bcos_kernels.cli import loading

MODEL = "--model", "localisation_facts:model", "--image-size", "8", "--workers", "0"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The images of ``localisation_facts`` as files, in a folder for each class that the model predicts."""
    folder, model = tmp_path_factory.mktemp("images"), facts.model()
    pixels = (facts.images()[:, :3] * 255).round().to(torch.uint8)
    transform = loading.transform_of(model, 8)
    for n in range(0, len(pixels), 2):
        image = Image.fromarray(pixels[n].permute(1, 2, 0).contiguous().numpy())
        with torch.no_grad():
            label = int(model(transform(image)[None].double()).argmax())
        path = folder / f"class{label:02d}" / f"{n:03d}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    assert len(list(folder.iterdir())) == facts.CLASSES
    return folder


def command(metric, images, *more):
    return main(["evaluate", metric, str(images), *MODEL, *map(str, more)])


def loaded(paths, **options):
    transform = loading.transform_of(facts.model(), 8, **options)
    return torch.stack([transform(Image.open(path)) for path in paths]).double()


@pytest.mark.parametrize("rescale", [False, True])
def test_grids_of_a_folder(images, rescale, tmp_path, capsys):
    more = ["--cells", 4, "--grids", 5, "--smooth", 3, "--batch", 9, *(["--rescale"] if rescale else [])]
    assert command("gridpg", images, *more, "--out", tmp_path / "found.json") == 0
    paths, model = sorted(images.rglob("*.png")), bk.accelerate(facts.model())
    labels = torch.tensor([int(path.parent.name[-2:]) for path in paths])
    with torch.no_grad():
        grids = metrics.select_grids(model(loaded(paths)), labels, 4, 5)
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["images"] for row in found["rows"]] == [
        [paths[i].relative_to(images).as_posix() for i in grid] for grid in grids
    ]
    if rescale:
        transform = loading.transform_of(model, 4)
        cells = torch.stack([torch.stack([transform(Image.open(paths[i])) for i in grid]) for grid in grids]).double()
    else:
        cells = torch.stack([loaded([paths[i] for i in grid]) for grid in grids])
    maps = bk.explain(model, metrics.make_grid(cells), labels[torch.tensor(grids)]).contributions
    expected = metrics.grid_pointing(maps, 3)
    assert torch.tensor([row["values"] for row in found["rows"]]).allclose(expected.float())
    assert found["mean"] == pytest.approx(expected.mean().item())
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["metric", "values", "mean", "25", "%", "50", "%", "75", "%", "100", "%"]
    assert f"{expected.mean():.4f}" in table[1] and "20" in table[1].split()


def test_boxes_of_a_folder(images, tmp_path, capsys):
    names = [path.relative_to(images).as_posix() for path in sorted(images.rglob("*.png"))][:5]
    boxes = {name: [[n, 0, 1, 4, 7], [11, 2, 2, 8, 8], [n, 5, 0, 6, 3]] for n, name in enumerate(names)}
    (tmp_path / "boxes.json").write_text(json.dumps({**boxes, "elsewhere.png": [[0, 0, 0, 1, 1]]}))
    more = "--boxes", tmp_path / "boxes.json", "--batch", 2, "--out", tmp_path / "found.json"
    assert command("epg", images, *more) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    x = loaded([images / name for name in names], whole=True)
    for n, row in enumerate(found["rows"]):
        assert row["image"] == names[n] and row["classes"] == [n, 11]
        maps = bk.explain(facts.model(), x[n : n + 1], [[n, 11]]).contributions[0]
        of_n = [(0, 1, 4, 7), (5, 0, 6, 3)]
        assert row["values"] == pytest.approx(metrics.energy_pointing(maps, [of_n, [(2, 2, 7, 7)]]).tolist(), rel=1e-6)
    assert "EPG" in capsys.readouterr().out


def test_unreadable_images_are_named(images, tmp_path, capsys):
    for path in images.rglob("*.png"):
        copy = tmp_path / path.relative_to(images)
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "class03" / "text.png").write_text("no image")
    assert command("gridpg", tmp_path, "--cells", 4, "--grids", 1) == 1
    assert "skipped class03/text.png: UnidentifiedImageError" in capsys.readouterr().err


def test_an_error_comes_with_what_was_skipped_before_it(tmp_path, capsys):
    (tmp_path / "class00").mkdir()
    for number in range(30):
        (tmp_path / "class00" / f"{number:02}.png").write_text("no image")
    assert command("gridpg", tmp_path) == 2
    told = capsys.readouterr().err
    assert "skipped class00/19.png: UnidentifiedImageError" in told and "skipped class00/20.png" not in told
    assert told.endswith("skipped 10 more\nbcos_kernels evaluate: no image can be read\n")


@pytest.mark.parametrize(
    "metric, more, words",
    [
        ("gridpg", ["--cells", "9", "--grids", "1000"], "--cells 9 --grids 1000: the 120 images make "),
        (
            "gridpg",
            ["--threshold", "0.999"],
            "--cells 9: the 120 images make 0 grids, which take images",
        ),
        ("epg", ["--boxes", "none.json"], "--boxes none.json: "),
        ("epg", ["--boxes", "list.json"], "--boxes list.json: not of the form"),
        ("epg", ["--boxes", "other.json"], "--boxes other.json: it names none of the images, such as class00/"),
        ("epg", ["--boxes", "high.json"], "class 12 is out of range"),
    ],
)
def test_bad_input_ends_in_one_line(metric, more, words, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = sorted(images.rglob("*.png"))[0].relative_to(images).as_posix()
    for file, text in (("list", [1]), ("other", {"x.png": [[0, 0, 0, 1, 1]]}), ("high", {name: [[12, 0, 0, 1, 1]]})):
        (tmp_path / f"{file}.json").write_text(json.dumps(text))
    assert command(metric, images, *more) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("bcos_kernels evaluate: ") and words in message


@pytest.mark.parametrize(
    "box, words",
    [
        (["cat", 0, 0, 1, 1], "the class must be an int of at least 0"),
        ([True, 0, 0, 1, 1], "the class must be an int of at least 0"),
        ([0, 0, "1", 1, 1], "xmin, ymin, xmax and ymax must be numbers"),
        ([0, 0, 0, float("nan"), 1], "xmin, ymin, xmax and ymax must be numbers"),
        ([0, 3, 0, 2, 1], "it ends before it starts"),
        ([0, 800, 0, 801, 1], "it lies outside of the image, 8 x 8"),
        ([0, -9, 0, 0, 1], "it lies outside of the image, 8 x 8"),
        ([0, 0, -9, 1, -1], "it lies outside of the image, 8 x 8"),
    ],
)
def test_boxes_that_would_count_as_nothing(box, words, images, tmp_path, capsys):
    name = sorted(images.rglob("*.png"))[0].relative_to(images).as_posix()
    (tmp_path / "boxes.json").write_text(json.dumps({name: [[0, 0, 0, 1, 1], box]}))
    assert command("epg", images, "--boxes", tmp_path / "boxes.json") == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"boxes.json: {name}: [" in message and message.endswith(words)


def test_boxes_of_two_images_of_one_name(images, tmp_path, capsys):
    name = sorted(images.rglob("*.png"))[0].relative_to(images).as_posix()
    (tmp_path / "boxes.json").write_text(json.dumps({name: [[0, 0, 0, 1, 1]]}))
    assert main(["evaluate", "epg", str(images), str(images), *MODEL, "--boxes", str(tmp_path / "boxes.json")]) == 2
    assert capsys.readouterr().err.endswith(f"boxes.json: {name} is the name of 2 images\n")


def test_fewer_classes_than_those_of_the_model_are_told(images, tmp_path, capsys):
    """A folder of some classes numbers them from 0 on, which the model may not do."""
    subset = tmp_path / "subset"
    subset.mkdir()
    for folder in sorted(images.iterdir())[2:10]:
        (subset / folder.name).symlink_to(folder, target_is_directory=True)
    assert command("gridpg", subset, "--cells", 4, "--threshold", 0) == 2
    told = capsys.readouterr().err
    assert "the images have 8 classes and the model 12: class k of the images is taken as its logit k" in told
    assert "--cells 4: the 77 images make 0 grids" in told


def counted(folder, capsys):
    """What is said on stderr of a few images, of which no grid can be made."""
    command("gridpg", folder, "--cells", 4, "--threshold", 0)
    return capsys.readouterr().err


def test_classes_are_counted_and_not_the_largest_label(images, tmp_path, capsys):
    """Folders without images are classes, too; of a tar those count that an image has."""
    fewer = tmp_path / "fewer"
    for n, folder in enumerate(sorted(images.iterdir())):
        (fewer / folder.name).mkdir(parents=True)
        if n < 3:
            (fewer / folder.name / "0.png").write_bytes(next(folder.iterdir()).read_bytes())
    told = counted(fewer, capsys)
    assert "--cells 4: the 3 images make 0 grids" in told and "classes and the model" not in told
    with tarfile.open(tmp_path / "images.tar", "w") as tar:
        for name, label in (("a", b"2"), ("b", b"11")):
            for ending, content in (("png", (fewer / "class00" / "0.png").read_bytes()), ("cls", label)):
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    assert "the images have 2 classes and the model 12: class k" in counted(tmp_path / "images.tar", capsys)
    (fewer / "z").mkdir()
    (fewer / "z" / "0.png").write_bytes((fewer / "class00" / "0.png").read_bytes())
    assert "an image is of class 12, counted from 0, and the model has 12 classes" in counted(fewer, capsys)


def test_images_without_classes(tmp_path, capsys):
    Image.fromarray(np.zeros((9, 9, 3), dtype=np.uint8)).save(tmp_path / "0.png")
    assert command("gridpg", tmp_path) == 2
    assert "0.png has no class: a folder for each class is needed" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command("epg", tmp_path)
    assert "epg needs --boxes" in capsys.readouterr().err
