"""Which images a command finds, and which classes they have."""

import argparse
import os
import resource
import tarfile

import numpy as np
import pytest
from PIL import Image

from bcos_kernels.cli import sources
from bcos_kernels.cli.explain.shards import Folder, shard_writer


def picture(path, side=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((side, side, 3), dtype=np.uint8)).save(path)


def found(*folders):
    """``name -> label`` of the images in folders."""
    options = argparse.Namespace(images=list(folders), dataset=None)
    return {entry.name: entry.label for entry in sources.open_source(options).entries}


def test_classes_are_the_subfolders_that_are_not_hidden(tmp_path):
    """Those that Jupyter leaves behind are hidden; an empty one has its place, as in torchvision's ImageFolder."""
    picture(tmp_path / "cat" / "0.png")
    picture(tmp_path / "dog" / "deep" / "0.png")
    picture(tmp_path / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(tmp_path / "dog" / ".ipynb_checkpoints" / "0-checkpoint.png")
    (tmp_path / "bird").mkdir()
    assert found(tmp_path) == {"cat/0.png": 1, "dog/deep/0.png": 2}


def test_links_to_folders_are_followed(tmp_path):
    """Subsets of large data sets are often made of links to the folders of their classes."""
    for name in ("cat", "dog"):
        picture(tmp_path / "all" / name / "0.png")
    subset = tmp_path / "subset"
    picture(subset / "ant" / "0.png")
    (subset / "dog").symlink_to(tmp_path / "all" / "dog", target_is_directory=True)
    (subset / "ant" / "around").symlink_to(subset, target_is_directory=True)
    (subset / "ant" / "gone.png").symlink_to(tmp_path / "gone.png")
    assert found(subset) == {"ant/0.png": 0, "ant/gone.png": 0, "dog/0.png": 1}


def test_several_folders_number_their_classes_together(tmp_path):
    for name in ("one/cat", "one/dog", "two/dog", "two/fox"):
        picture(tmp_path / name / f"{name.partition('/')[0]}.png")
    expected = {"cat/one.png": 0, "dog/one.png": 1, "dog/two.png": 1, "fox/two.png": 2}
    assert found(tmp_path / "one", tmp_path / "two") == expected


def test_a_full_disk_leaves_no_drafts(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    record = {"images": ["x" * 2**16], "skipped": []}
    (tmp_path / "shard-000000.tar").write_bytes(b"")
    before = os.listdir(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, hard))
    try:
        with pytest.raises(OSError), shard_writer(tmp_path / "shard-000001.tar") as add:
            add("0", [("bin", bytes(2**16))])
        with pytest.raises(OSError):
            Folder(tmp_path, {}).finish(0, record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == before


@pytest.mark.parametrize("name, mode", [("shard.tar", "w:gz"), ("shard.tar.gz", "w:gz"), ("shard.tgz", "w:gz")])
def test_compressed_tars_are_refused(tmp_path, name, mode):
    """Their parts have no place in the file at which they could be read."""
    picture(tmp_path / "0.png")
    with tarfile.open(tmp_path / name, mode) as tar:
        tar.add(tmp_path / "0.png", "0.png")
    with pytest.raises(ValueError, match=f"{name}: not a readable tar without compression"):
        found(tmp_path / name)
