"""What commands make of an image where its size is asked for: the model's own steps, and the channels that it takes."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import bcos_kernels as bk
from bcos_kernels.__main__ import main
from bcos_kernels.cli import evaluate, loading
from bcos_kernels.compat import import_reference

bcos = import_reference()

import einops.layers.torch  # noqa: E402
from bcos.data.presets import ImageNetClassificationPresetEval  # noqa: E402
from torchvision import transforms  # noqa: E402


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 28, 3), dtype=np.uint8))


def patches(channels):
    rearranged = einops.layers.torch.Rearrange("b c (h p1) (w p2) -> b h w (p1 p2 c)", p1=4, p2=2)
    return nn.Sequential(rearranged, bk.BcosLinear(8 * channels, 5))


@pytest.mark.parametrize(
    "model, channels",
    [
        (bk.BcosConv2d(6, 4, 3), 6),
        (bk.BcosConv2d(3, 4, 3), 3),
        (bk.DAUConv2d(6, 4, 3, 3), 6),
        (patches(6), 6),
        (patches(3), 3),
        (nn.Sequential(bk.AddInverse(), bk.BcosConv2d(6, 4, 3)), 3),
        (bk.BcosLinear(6, 4), 3),
        (bk.BcosConv2d(1, 4, 3), 1),
        (bk.BcosConv2d(2, 4, 3), 2),
        (nn.Sequential(bk.AddInverse(), bk.BcosConv2d(2, 4, 3)), 1),
    ],
)
@pytest.mark.parametrize("whole", [False, True])
def test_images_get_the_channels_that_the_first_layer_takes(model, channels, whole, image):
    assert loading.transform_of(model, 16, whole)(image).shape == (channels, 16, 16)


def test_a_model_of_one_or_two_channels_sees_the_image_in_grey(image):
    image = image.resize((28, 28))
    one, two = (loading.transform_of(bk.BcosConv2d(n, 4, 3), 28, whole=True)(image) for n in (1, 2))
    assert torch.equal(one[0], torch.from_numpy(np.array(image.convert("L"))) / 255)
    assert torch.equal(two, torch.cat([one, 1 - one]))


@pytest.mark.parametrize("whole", [False, True])
def test_the_models_own_steps_follow_another_size(whole, image):
    """Such as a normalisation, without which the model would see other values than it was trained with."""
    model = patches(6)
    steps = [transforms.ToTensor(), transforms.Normalize((0.5,) * 3, (0.2,) * 3)]
    model.transform = transforms.Compose([transforms.Resize(40), transforms.CenterCrop(32), *steps])
    fit = [transforms.Resize((16, 16))] if whole else [transforms.Resize(18), transforms.CenterCrop(16)]
    assert torch.equal(loading.transform_of(model, 16, whole)(image), transforms.Compose([*fit, *steps])(image))
    assert loading.transform_of(model, None) is model.transform
    model.transform = ImageNetClassificationPresetEval(crop_size=32, resize_size=40, is_bcos=True)
    assert loading.transform_of(model, 16, whole)(image).shape == (6, 16, 16)


COLOURS = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1.0]])


def own():
    """A model whose transform makes images of 12 pixels; each class is a colour."""
    model = nn.Sequential(bk.BcosConv2d(6, len(COLOURS), 1, b=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    model[0].linear.weight.data = torch.cat([COLOURS, 1 - COLOURS], 1)[..., None, None]
    model.transform = transforms.Compose([transforms.Resize((12, 12)), transforms.ToTensor(), bk.AddInverse()])
    return model


class Named:
    """What a model of another library returns."""

    def __init__(self, logits):
        self.logits = logits


class Naming(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = own()
        self.transform = self.model.transform

    def forward(self, x):
        return Named(self.model(x))


def pair():
    model = Naming().eval()
    model.forward = lambda x: (model.model(x), None)
    return model


@pytest.fixture
def colours(tmp_path):
    """A folder for each class, with two images of its colour."""
    for number, colour in enumerate((255 * COLOURS).byte().numpy()):
        folder = tmp_path / "images" / f"{number}"
        folder.mkdir(parents=True)
        for n in range(2):
            Image.fromarray(np.broadcast_to(colour, (15, 15 + n, 3)).copy()).save(folder / f"{n}.png")
    return tmp_path / "images"


def gridpg(images, model, *more):
    command = "evaluate", "gridpg", str(images), "--model", f"test_loading:{model}", "--workers", "0"
    return main([*command, "--cells", "4", "--threshold", "0", "--smooth", "1", *more])


def test_a_rescaled_grid_has_the_size_that_the_models_own_transform_gives(colours, monkeypatch):
    seen = []

    def explained(model, images, *arguments, **options):
        seen.append(tuple(images.shape[2:]))
        return bk.explain(model, images, *arguments, **options)

    monkeypatch.setattr(evaluate, "explain", explained)
    assert gridpg(colours, "own", "--rescale") == 0
    assert set(seen) == {(12, 12)}


def test_logits_by_name_and_what_has_none(colours, tmp_path, capsys):
    out = [tmp_path / f"{model}.json" for model in ("own", "Naming")]
    assert [gridpg(colours, path.stem, "--out", str(path)) for path in out] == [0, 0]
    assert json.loads(out[0].read_text()) == json.loads(out[1].read_text())
    told = "the model returns tuple: a tensor of logits [N, K] is needed, and a factory of your own can wrap the model"
    assert gridpg(colours, "pair") == 2 and told in capsys.readouterr().err
    (tmp_path / "boxes.json").write_text('{"0/0.png": [[0, 0, 0, 9, 9]]}')
    pair = str(colours), "--model", "test_loading:pair", "--workers", "0"
    assert main(["evaluate", "epg", *pair, "--boxes", str(tmp_path / "boxes.json")]) == 2
    assert told in capsys.readouterr().err
    assert main(["explain", *pair, "--out", str(tmp_path / "out")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out").exists()


def grey():
    """A model of one channel and its inverse."""
    return nn.Sequential(bk.BcosConv2d(2, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def test_a_model_of_grey_images_is_explained(colours, tmp_path, capsys):
    command = ["explain", str(colours), "--model", "test_loading:grey", "--image-size", "8", "--workers", "0"]
    assert main([*command, "--out", str(tmp_path / "pictures"), "--save", "map,rgba"]) == 2
    assert "--save rgba: colours need six channels, and the model takes images of 2" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()
    assert main([*command, "--out", str(tmp_path / "maps"), "--save", "map,weights"]) == 0
    assert "10 images in 1 shard" in capsys.readouterr().out


def test_processes_share_the_gpus_that_there_are(monkeypatch):
    """As where a scheduler shows each process a GPU of its own, or where processes outnumber the GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [loading.device(rank).index for rank in range(5)] == [0, 1, 0, 1, 0]
