"""The file of choices: found again, told apart, shared by writers, and harmless where it is damaged."""

import importlib
import json
import threading
import warnings
from dataclasses import astuple, fields, replace

import pytest
import torch

import bcos_kernels as bk
from bcos_kernels.__main__ import main
from bcos_kernels.backends.gpu import choices
from bcos_kernels.backends.gpu.choice import Choice, choose, ways
from bcos_kernels.backends.gpu.problem import Problem
from bcos_kernels.backends.gpu.tile import DIRECTIONS

tuning = importlib.import_module("bcos_kernels.tuning")

CALL = Problem((2, 6, 9, 8), (5, 6, 3, 3))
WAY = {"candidate": "one-pass", "tile": [64, 32, 16, 4, 2], "seconds": {"one-pass": 1e-5, "vendor": 2e-5}}
CHOICE = {"triton": WAY}
BOTH = ("cuda", "triton")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An own file; nothing that was read before is remembered, here and afterwards."""
    monkeypatch.setattr(choices, "PATH", tmp_path / "cache" / "choices.json")
    choices.forget()
    choose.cache_clear()
    yield choices.PATH
    choices.forget()
    choose.cache_clear()


def test_choices_are_found_again(cache):
    assert choices.find(CALL, "forward") is None
    choices.store({choices.key(CALL, "forward"): CHOICE})
    assert choices.find(CALL, "forward") == CHOICE
    assert choices.find(CALL, "training") is None
    assert choices.find(replace(CALL, exact_two=False), "forward") is None
    assert choose(CALL, "training", BOTH).reason.startswith("predicted")


def test_the_fastest_of_the_backends_that_are_left_serves(cache):
    def way(backend: str, seconds: float) -> dict:
        tile = next(
            tile for name, candidate, tile in ways(CALL, "forward", BOTH) if (name, candidate) == (backend, "one-pass")
        )
        return {**WAY, "tile": list(astuple(tile)), "seconds": {"one-pass": seconds}}

    choices.store({choices.key(CALL, "forward"): {"triton": way("triton", 1e-5), "cuda": way("cuda", 2e-5)}})
    for backends, served in ((BOTH, "triton"), (("triton",), "triton"), (("cuda",), "cuda")):
        choice = choose(CALL, "forward", backends)
        assert (choice.backend, choice.candidate, choice.reason) == (served, "one-pass", "measured on this device")
    gone = {**way("cuda", 1e-6), "tile": [1, 2, 3, 4, 5]}  # a tile that this version does not have
    choices.store({choices.key(CALL, "forward"): {"cuda": gone}})
    assert choose.__wrapped__(CALL, "forward", BOTH).reason.startswith("predicted")
    assert isinstance(choice, Choice)


def test_a_key_tells_calls_apart_and_reads_the_same_in_every_run():
    changed = {
        "x_shape": (2, 6, 8, 8), "weight_shape": (5, 6, 1, 1), "stride": (2, 2), "padding": (1, 1), "dilation": (2, 2),
        "groups": 2, "max_out": 5, "exponent": 1.5, "unit": False, "eps": (0.0, 0.0, 0.0), "exact_two": False,
        "bias": True, "dtype": torch.float16, "weight_dtype": torch.float32, "out_dtype": torch.float32,
        "tf32": True, "is_linear": True,
    }  # fmt: skip
    assert {*changed, "arch"} == {field.name for field in fields(Problem)}
    keys = {choices.key(replace(CALL, **{name: value}), "forward") for name, value in changed.items()}
    assert len(keys | {choices.key(CALL, d) for d in DIRECTIONS}) == len(changed) + 3
    assert choices.key(replace(CALL, arch="sm_80"), "forward") == choices.key(CALL, "forward")  # the device has it
    assert choices.key(CALL, "forward").startswith(
        "forward x_shape=(2, 6, 9, 8) weight_shape=(5, 6, 3, 3) stride=(1, 1)"
    )
    assert "dtype=bfloat16 " in choices.key(CALL, "forward")


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"schema": 1, "devices": {}}', '{"schema": 2}', '{"schema": 2, "devices": {"a": 3}}', "\xff"],
)
def test_a_foreign_file_is_left_alone(text, cache, monkeypatch, capsys):
    """Calls go by predictions, with one warning of the file and the cure; nothing overwrites it."""
    cache.parent.mkdir()
    cache.write_text(text, encoding="latin1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for direction in DIRECTIONS:
            assert choose(CALL, direction, BOTH).reason.startswith("predicted")
    (warning,) = caught
    assert str(cache) in str(warning.message) and "delete it, or set BCOS_KERNELS_CACHE" in str(warning.message)
    monkeypatch.setattr(tuning, "check_device", lambda: None)
    for refused in (lambda: choices.store({}), choices.delete, lambda: bk.tune(torch.nn.ReLU(), torch.ones(1))):
        with pytest.raises(ValueError, match=r"choices\.json .*: delete it, or set BCOS_KERNELS_CACHE"):
            refused()
    assert main(["tune", "--list"]) == 2 and str(cache) in capsys.readouterr().err
    assert cache.read_text(encoding="latin1") == text


def test_a_folder_in_its_place(cache):
    cache.mkdir(parents=True)
    with pytest.warns(UserWarning, match="Is a directory"):
        assert choices.find(CALL, "forward") is None
    with pytest.raises(ValueError, match=r"Is a directory.*set BCOS_KERNELS_CACHE"):
        choices.store({})


def test_a_place_that_cannot_be_written(cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"choices\.json cannot be written.*set BCOS_KERNELS_CACHE"):
        choices.store({})


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        WAY,
        {"triton": {**WAY, "candidate": 1}},
        {"triton": {**WAY, "tile": [64, 32]}},
        {"triton": {**WAY, "tile": "64"}},
        {"triton": {**WAY, "seconds": {"vendor": "1"}}},
        {"triton": {**WAY, "candidate": "no-pass"}},
        {"triton": {"candidate": "vendor"}},
    ],
)
def test_unknown_entries_are_ignored(entry, cache, capsys):
    cache.parent.mkdir()
    key = choices.key(CALL, "forward")
    cache.write_text(json.dumps({"schema": 2, "devices": {choices.device(): {key: entry}, "other": {"x": CHOICE}}}))
    assert choose(CALL, "forward", BOTH).reason.startswith("predicted")
    assert main(["tune", "--list"]) == 0
    assert "other: 1 choices" in capsys.readouterr().out


def test_writers_at_the_same_time_lose_nothing(cache):
    def write(writer: int) -> None:
        for i in range(8):
            choices.store({f"{writer} {i}": CHOICE})

    writers = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(choices.read()[choices.device()]) == 48
    assert sorted(path.name for path in cache.parent.iterdir()) == ["choices.json", "choices.lock"]


def test_only_the_present_device_is_deleted(cache, monkeypatch):
    choices.store({"a": CHOICE, "b": CHOICE})
    monkeypatch.setattr(choices, "device", lambda: "another")
    choices.store({"c": CHOICE})
    assert choices.delete() == 1 and choices.delete() == 0
    assert [len(known) for known in choices.read().values()] == [2]


def test_nothing_is_stored(cache, capsys):
    assert main(["tune", "--list"]) == 0
    assert capsys.readouterr().out == f"{cache}: not there, nothing was tuned\n"
