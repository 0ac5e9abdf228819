"""``python -m bcos_kernels explain``: what it writes, reruns, interruptions, several processes, and bad input."""

import importlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import localisation_facts as facts
import numpy as np
import pytest
import torch
from PIL import Image
from programs import ROOT, outcome, start

import bcos_kernels as bk
from bcos_kernels.__main__ import main
from bcos_kernels.cli import loading

MODEL = "--model", "localisation_facts:model", "--image-size", "16", "--workers", "0"
COUNT = 7


def write_images(folder, count=COUNT, seed=0):
    """Images of some sizes in two folders."""
    generator = np.random.default_rng(seed)
    for n in range(count):
        path = folder / ("a", "b")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20 + n, 24, 3), dtype=np.uint8)).save(path)
    return folder


@pytest.fixture
def images(tmp_path):
    return write_images(tmp_path / "images")


def command(images, out, *more):
    return main(["explain", *([] if images is None else [str(images)]), *MODEL, "--out", str(out), *map(str, more)])


def contents(out):
    """``key -> {ending: bytes}`` of all shards, grouped as WebDataset does it: the key ends at the first dot."""
    found = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                found.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return found


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


def explained(images, targets="top2"):
    """What the command explains, by the function."""
    model = bk.accelerate(facts.model())
    transform = loading.transform_of(model, 16)
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    batch = torch.stack([transform(Image.open(images / name)) for name in names]).double()
    return names, bk.explain(model, batch, targets)


def array(content):
    return torch.from_numpy(np.load(io.BytesIO(content)))


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
def test_shards_hold_what_explain_returns(dtype, images, tmp_path, capsys):
    out = tmp_path / "out"
    status = command(
        images, out, "--top", 2, "--save", "weights,map,rgba", "--batch", 2, "--shard", 3, "--dtype", dtype
    )
    assert status == 0
    names, expected = explained(images)
    found = contents(out)
    assert list(found) == [f"{n:08d}" for n in range(COUNT)]
    pictures = expected.rgba()
    for n, (name, parts) in enumerate(zip(names, found.values(), strict=True)):
        record = json.loads(parts.pop("json"))
        assert record["name"] == name and record["classes"] == expected.targets[n].tolist()
        assert record["label"] == (0 if name.startswith("a/") else 1)
        assert record["logits"] == pytest.approx(expected.logits[n][expected.targets[n]].tolist(), rel=1e-9)
        for kind, rows in (("map", expected.contributions[n]), ("weights", expected.weights[n])):
            stored = array(parts.pop(f"{kind}.npy"))
            assert stored.dtype == {"fp16": torch.float16, "fp32": torch.float32}[dtype]
            scale = torch.tensor(record[f"{kind}_scale"]).view(-1, *[1] * (rows.dim() - 1))
            error = (stored.double() * scale - rows).abs().amax() / rows.abs().max()
            assert error < {"fp16": 2**-11, "fp32": 1e-7}[dtype]
        assert list(parts) == ["0.rgba.png", "1.rgba.png"]
        for t, content in enumerate(parts.values()):
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(content))))
            assert (pixels - pictures[n, t] * 255).abs().max() <= 0.5 + 1e-9
    index = json.loads((out / "index.json").read_text())
    assert index["images"] == COUNT and index["skipped"] == []
    assert [shard["file"] for shard in index["shards"]] == [f"shard-{n:06d}.tar" for n in range(3)]
    assert [name for shard in index["shards"] for name in shard["images"]] == names
    shown = capsys.readouterr()
    assert f"{COUNT} images in 3 shards" in shown.out and "% of it in the model" in shown.out


def test_a_rerun_makes_only_what_is_missing(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(images, out, "--shard", 2) == 0
    before = files(out)
    assert command(images, out, "--shard", 2, "--batch", 1) == 0
    assert "nothing was left to do" in capsys.readouterr().out and files(out) == before
    (out / "shard-000001.json").unlink()
    (out / "shard-000001.tar").write_bytes(b"half of a shard")
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert command(images, out, "--shard", 2) == 0
    assert files(out) == before
    assert {name for name, time in times.items() if (out / name).stat().st_mtime_ns != time} == {"shard-000001.tar"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda tar, record: tar.write_bytes(tar.read_bytes()[:100]),
        lambda tar, record: tar.unlink(),
        lambda tar, record: record.write_text("{"),
        lambda tar, record: record.write_text("[]"),
        lambda tar, record: record.write_text("{}"),
    ],
    ids=["cut short", "gone", "record", "list", "empty record"],
)
def test_a_damaged_shard_is_made_again(damage, images, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(images, out, "--shard", 4) == 0
    before = files(out)
    damage(out / "shard-000000.tar", out / "shard-000000.json")
    assert command(images, out, "--shard", 4) == 0
    assert "this run: 4 images" in capsys.readouterr().out and files(out) == before


def test_images_of_16_bits_are_not_clipped(images, tmp_path):
    """PIL's own conversion makes white of all that is above 255; of other wide modes the range is not known."""
    picture = np.random.default_rng(1).integers(0, 255, (20, 24), dtype=np.uint8)
    wide = picture.astype(np.uint16) * 257
    for name, pixels in (("8.png", picture), ("16.png", wide), ("16.pgm", wide), ("16.tif", wide)):
        Image.fromarray(pixels).save(images / "a" / name)
    Image.fromarray(wide.astype(np.float32)).save(images / "a" / "float.tif")
    out = tmp_path / "out"
    assert command(images, out, "--dtype", "fp32") == 1
    maps = {
        record["name"]: parts["map.npy"] for parts in contents(out).values() for record in [json.loads(parts["json"])]
    }
    assert maps["a/8.png"] == maps["a/16.png"] == maps["a/16.pgm"] == maps["a/16.tif"]
    (skipped,) = json.loads((out / "index.json").read_text())["skipped"]
    assert skipped["name"] == "a/float.tif" and "pixels of mode 'F' have no known range" in skipped["reason"]


def test_names_that_are_no_text(images, tmp_path, capsys):
    (images / "b" / os.fsdecode(b"\xff\xfe.png")).write_bytes((images / "a" / "0.png").read_bytes())
    (images / "b" / os.fsdecode(b"\xff.png")).write_bytes(b"no image")
    assert command(images, tmp_path / "out") == 1
    assert f"{COUNT + 1} images in 1 shard of" in capsys.readouterr().out


def test_an_interrupt_loses_one_shard(images, tmp_path, monkeypatch, capsys):
    running = importlib.import_module("bcos_kernels.cli.explain.run")
    out, calls, explain = tmp_path / "out", [], running.explain

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return explain(*args, **options)

    monkeypatch.setattr(running, "explain", interrupted)
    assert command(images, out, "--shard", 2, "--batch", 1) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert sorted(files(out)) == ["settings.json", "shard-000000.json", "shard-000000.tar"]
    assert command(images, out, "--shard", 2, "--batch", 1) == 0
    assert len(calls) == 4 + COUNT - 2
    assert command(images, tmp_path / "at once", "--shard", 2) == 0
    assert contents(out).keys() == contents(tmp_path / "at once").keys()


def test_unreadable_images_are_named_skipped_and_counted(images, tmp_path, capsys):
    whole = (images / "a" / "0.png").read_bytes()
    (images / "a" / "half.png").write_bytes(whole[: len(whole) // 2])
    (images / "b" / "text.jpg").write_text("no image")
    out = tmp_path / "out"
    assert command(images, out, "--shard", 4, "--batch", 2) == 1
    shown = capsys.readouterr()
    assert "skipped a/half.png: " in shown.err and "skipped b/text.jpg: UnidentifiedImageError: " in shown.err
    assert f"{COUNT} images in 3 shards of {out}, 2 skipped" in shown.out
    index = json.loads((out / "index.json").read_text())
    assert [skipped["name"] for skipped in index["skipped"]] == ["a/half.png", "b/text.jpg"]
    assert len(contents(out)) == COUNT
    assert command(images, out, "--shard", 4, "--batch", 2) == 1  # a rerun tells it again


def test_images_of_tars_and_of_data_sets(images, tmp_path):
    tar = tmp_path / "data.tar"
    paths = sorted(images.rglob("*.png"))
    with tarfile.open(tar, "w") as file:
        for n, path in enumerate(paths):
            file.add(path, f"x/{n}.v1.png")
            label = tarfile.TarInfo(f"x/{n}.cls")
            label.size = 1
            file.addfile(label, io.BytesIO(str(n % 5).encode()))
    assert command(tar, tmp_path / "1", "--save", "map") == 0
    data = "--dataset", "ImageFolder", "--root", images
    assert command(None, tmp_path / "2", *data) == 0
    assert command(images, tmp_path / "3") == 0
    by_tar, by_set, by_folder = (contents(tmp_path / name) for name in "123")
    for key, parts in by_folder.items():
        assert parts["map.npy"] == by_tar[key]["map.npy"] == by_set[key]["map.npy"]
    records = [json.loads(parts["json"]) for parts in by_tar.values()]
    assert [record["label"] for record in records] == [n % 5 for n in range(COUNT)]
    assert records[0]["name"] == "data.tar/x/0.v1.png"
    assert [json.loads(parts["json"])["label"] for parts in by_set.values()] == [0] * 4 + [1] * 3


def test_a_checkpoint_may_have_a_prefix(images, tmp_path, capsys):
    model = facts.model()
    with torch.no_grad():
        model[0].linear.weight.mul_(-1)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model.pt")
    assert command(images, tmp_path / "1", "--weights", tmp_path / "model.pt") == 0
    assert command(images, tmp_path / "2") == 0
    assert contents(tmp_path / "1")["00000000"]["map.npy"] != contents(tmp_path / "2")["00000000"]["map.npy"]
    torch.save({**state, "module.more": torch.ones(1)}, tmp_path / "other.pt")
    assert command(images, tmp_path / "3", "--weights", tmp_path / "other.pt") == 2
    assert "unexpected are 1, such as more" in capsys.readouterr().err
    assert not (tmp_path / "3").exists()


def test_a_checkpoint_of_a_model_whose_own_names_begin_with_a_prefix(tmp_path):
    """As those of converted networks do: what all names share is taken off only where it is not the model's."""
    network = bk.convert(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 3, 1)))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert all(name.startswith("model.") for name in state)
    wrapped = "", "module.", "_orig_mod.", "model.", "module.model.", "_orig_mod.module.", "model._orig_mod."
    for prefix in wrapped:
        averaged = {"n_averaged": torch.tensor(3)} if prefix == "module." else {}  # as torch.optim.swa_utils names it
        torch.save({**averaged, **{prefix + name: value + 1 for name, value in state.items()}}, tmp_path / "model.pt")
        network.load_state_dict(state)
        loading._load_weights(network, tmp_path / "model.pt")
        assert all(torch.equal(value, state[name] + 1) for name, value in network.state_dict().items())


def test_an_entry_point_of_the_reference(images, tmp_path):
    more = "--factory-args", '{"pretrained": false}', "--image-size", 32, "--workers", 0, "--out", tmp_path / "out"
    assert main(["explain", str(images / "a"), "--hub", "resnet18", *map(str, more)]) == 0
    assert len(contents(tmp_path / "out")) == 4


@pytest.mark.parametrize("images, words", [("a folder", "a folder: there is no such file"), ("empty", "no images")])
def test_no_images(images, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert command(images, "out") == 2
    assert words in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize(
    "more, words",
    [
        (["--top", "0"], "--top: 0: must be at least 1"),
        (["--save", "map,png"], "--save map,png: allowed are map, rgba, weights"),
        (["--smooth", "4"], "--smooth 4: 0 or an odd"),
        (["--batch", "0"], "--batch: 0: must be at least 1"),
        (["--hub", "resnet18"], "one of --model and --hub is needed"),
        (["--factory-args", "[]"], "a JSON object is needed"),
    ],
)
def test_bad_arguments(more, words, images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        command(images, tmp_path / "out", *more)
    assert stop.value.code == 2 and words in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "more, words",
    [
        (["--top", "13"], "--top 13: the model has 12 classes"),
        (["--dataset", "CIFAR10"], "either IMAGES or --dataset is needed"),
        (["--weights", "none.pt"], "--weights none.pt: there is no such file"),
        (["--model", "localisation_facts:nothing"], "localisation_facts has no nothing"),
        (["--model", "torch.nn:Identity"], "Identity has no B-cos layers"),
        (["--model", "localisation_facts:images"], "returned Tensor, not a torch.nn.Module"),
    ],
)
def test_bad_input_ends_in_one_line(more, words, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command(images, tmp_path / "out", *more) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("bcos_kernels explain: ") and words in message
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tmp"))


def test_a_data_set_that_is_not_there(tmp_path, capsys):
    for name, words in (("CIFAR10", "--dataset CIFAR10 --root"), ("Images", "torchvision.datasets has no such")):
        assert command(None, tmp_path / "out", "--dataset", name, "--root", tmp_path) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "damaged.tar").write_bytes(b"no tar")
    assert command(tmp_path / "damaged.tar", tmp_path / "out") == 2
    assert "damaged.tar: not a readable tar" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert command(images, out) == 0
    before = files(out)
    assert command(images, out, "--top", 3) == 2
    assert "it holds a run of other settings: top 1 (now 3); choose another" in capsys.readouterr().err
    picture = images / "a" / "0.png"
    Image.open(picture).rotate(90, expand=True).save(picture)  # another image under the same name
    assert command(images, out) == 2
    write_images(images, COUNT + 1)
    assert command(images, out) == 2
    assert capsys.readouterr().err.count("images 7 images, ") == 2
    assert files(out) == before
    assert command(images, images) == 2
    assert "holds something else" in capsys.readouterr().err and not (images / "settings.json").exists()
    below = picture / "results"  # a file is no folder
    assert command(images, below) == 2
    assert capsys.readouterr().err == f"bcos_kernels explain: --out {below}: it cannot be written: Not a directory\n"
    for damaged in ("{", "[3]", "null"):
        (out / "settings.json").write_text(damaged)
        assert command(images, out) == 2
        assert "its settings.json is damaged" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_share_the_work(images, tmp_path):
    torchrun = "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"
    explain = "-m", "bcos_kernels", "explain", images, *MODEL, "--shard", "2", "--out", tmp_path / "two"
    process = start(*torchrun, *explain, cwd=tmp_path, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    status, printed, errors = outcome(process)
    assert status == 0, errors
    assert printed.count(f"{COUNT} images in 4 shards") == 1
    assert command(images, tmp_path / "one", "--shard", 2) == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


def overflowing():
    """A model whose logits of some images are infinite."""
    model = facts.model()
    model.append(Exploding())
    return model


class Exploding(torch.nn.Module):
    limit = 0.0

    def forward(self, logits):
        return logits / (logits.amax(1, keepdim=True) > self.limit)


def test_logits_that_are_not_finite_are_told(images, tmp_path, monkeypatch, capsys):
    """Their explanation would be one of class 0, or of a class chosen by chance."""
    more = "--image-size", "16", "--workers", "0", "--out", str(tmp_path / "out"), "--save", "map,rgba"
    names, expected = explained(images)
    largest = expected.logits.amax(1)
    monkeypatch.setattr(sys.modules["test_cli_explain"].Exploding, "limit", largest.median().item() + 1e-9)
    finite = (largest > largest.median()).tolist()
    assert sum(finite) == COUNT // 2
    assert main(["explain", str(images), "--model", "test_cli_explain:overflowing", *more]) == 1
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert index["shards"][0]["images"] == [name for name, known in zip(names, finite, strict=True) if known]
    assert len(contents(tmp_path / "out")) == sum(finite)
    skipped = [name for name, known in zip(names, finite, strict=True) if not known]
    assert [image["name"] for image in index["skipped"]] == skipped
    assert f"skipped {skipped[0]}: the model's logits are not finite" in capsys.readouterr().err
