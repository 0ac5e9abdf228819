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
from bcos_kernels.core import choice, tuned
from bcos_kernels.core.candidate import DIRECTIONS, Candidate
from bcos_kernels.core.choice import choose, predicted, taking_map, ways
from bcos_kernels.transform import TRANSFORM, Call, Spec
from bcos_kernels.transform.call import of_shapes

tuning = importlib.import_module("bcos_kernels.tuning")

CALL = of_shapes((2, 6, 9, 8), (5, 6, 3, 3))
WAY = {"candidate": "one-pass", "tile": [64, 32, 16, 4, 2], "seconds": {"one-pass": 1e-5, "vendor": 2e-5}}
CHOICE = {"triton": WAY}
BOTH = "cuda,triton"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An own file; nothing that was read before is remembered, here and afterwards."""
    monkeypatch.setattr(tuned, "PATH", tmp_path / "cache" / "choices.json")
    tuned.forget()
    choose.cache_clear()
    yield tuned.PATH
    tuned.forget()
    choose.cache_clear()


def changed(**fields) -> Call:
    """``CALL`` with other fields of it or of its spec."""
    options = {name: fields.pop(name) for name in list(fields) if name in Spec.__dataclass_fields__}
    return replace(CALL, **fields, spec=replace(CALL.spec, **options))


def test_choices_are_found_again(cache):
    assert tuned.find(CALL, "forward") is None
    tuned.store({tuned.key(CALL, "forward"): CHOICE})
    assert tuned.find(CALL, "forward") == CHOICE
    assert tuned.find(CALL, "training") is None
    assert tuned.find(changed(exact_two=False), "forward") is None
    assert choose(TRANSFORM, BOTH, CALL, "training").reason.startswith("predicted")


def test_a_measurement_is_valid_for_its_versions(monkeypatch):
    monkeypatch.setattr(tuned, "_triton", lambda: "8.8")
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert tuned.device().endswith(", torch 9.9, triton 8.8")


def test_what_refuses_and_what_takes_no_map_are_passed_over():
    """Candidates of no op, in the order of their predicted times."""

    def made(name: str, seconds: float, **options) -> Candidate:
        return Candidate("gpu", name, None, lambda *_: (), cost=lambda *_: seconds, **options)

    found = made("full", 1e-6, refusal=lambda *_: "no room"), made("plain", 2e-6), made("of maps", 3e-6)
    candidates = *found[:2], replace(found[2], takes_gradient_map=True)
    op = type("Op", (), {"candidates_of": lambda self, backend: candidates})()
    chosen = predicted(op, "gpu", CALL, "training")
    assert chosen.candidate is candidates[1]
    assert chosen.reason == "predicted: gpu plain 2 µs, gpu of maps 3 µs; gpu full refuses: no room"
    assert taking_map(op, "gpu", CALL, "training").candidate is candidates[2]


def test_threads_replace_the_choice_one_after_the_other():
    """As two that ask for a report at once: else the first one's replacement would stay when both have ended."""
    usual, first_is_in, second_is_in = choice.choose, threading.Event(), threading.Event()

    def first() -> None:
        with choice.choosing(lambda *_: None):
            first_is_in.set()
            second_is_in.wait(0.5)

    def second() -> None:
        first_is_in.wait()
        with choice.choosing(lambda *_: None):
            second_is_in.set()
            threads[0].join()

    threads = [threading.Thread(target=of) for of in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert choice.choose is usual


def test_the_fastest_of_the_backends_that_are_left_serves(cache):
    def way(backend: str, seconds: float) -> dict:
        tile = next(tile for c, tile in ways(TRANSFORM, backend, CALL, "forward") if c.name == "one-pass")
        return {**WAY, "tile": list(astuple(tile)), "seconds": {"one-pass": seconds}}

    tuned.store({tuned.key(CALL, "forward"): {"triton": way("triton", 1e-5), "cuda": way("cuda", 2e-5)}})
    for backends, served in ((BOTH, "triton"), ("triton", "triton"), ("cuda", "cuda")):
        choice = choose(TRANSFORM, backends, CALL, "forward")
        assert (str(choice.candidate), choice.reason) == (f"{served} one-pass", "measured on this device")
    gone = {**way("cuda", 1e-6), "tile": [1, 2, 3, 4, 5]}  # a tile that this version does not have
    tuned.store({tuned.key(CALL, "forward"): {"cuda": gone}})
    assert choose.__wrapped__(TRANSFORM, BOTH, CALL, "forward").reason.startswith("predicted")


def test_a_key_tells_calls_apart_and_reads_the_same_in_every_run():
    others = {
        "x_shape": (2, 6, 8, 8), "weight_shape": (5, 6, 1, 1), "stride": (2, 2), "padding": (1, 1), "dilation": (2, 2),
        "groups": 2, "max_out": 5, "b": 1.5, "unit": False, "norm_eps": (0.0, 0.0), "cos_eps": 0.0, "exact_two": False,
        "bias": True, "dtype": torch.float16, "weight_dtype": torch.float32, "out_dtype": torch.float32,
        "tf32": True, "border": (1, 1, 1, 1),
    }  # fmt: skip
    same = {"device": "cpu", "arch": "sm_80", "index": 1, "detach": True}
    assert {*others, *same, "spec"} == {field.name for kind in (Call, Spec) for field in fields(kind)}
    keys = {tuned.key(changed(**{name: value}), "forward") for name, value in others.items()}
    assert len(keys | {tuned.key(CALL, d) for d in DIRECTIONS}) == len(others) + 3
    for name, value in same.items():  # the file tells devices apart, and the direction says what is frozen
        assert tuned.key(changed(**{name: value}), "forward") == tuned.key(CALL, "forward")
    assert tuned.key(CALL, "forward").startswith(
        "forward x_shape=(2, 6, 9, 8) weight_shape=(5, 6, 3, 3) dtype=bfloat16 "
    )


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", '{"schema": 1, "devices": {}}', '{"schema": 3}', '{"schema": 3, "devices": {"a": 3}}', "\xff"],
)
def test_a_foreign_file_is_left_alone(text, cache, monkeypatch, capsys):
    """Calls go by predictions, with one warning of the file and the cure; nothing overwrites it."""
    cache.parent.mkdir()
    cache.write_text(text, encoding="latin1")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for direction in DIRECTIONS:
            assert choose(TRANSFORM, BOTH, CALL, direction).reason.startswith("predicted")
    (warning,) = caught
    assert str(cache) in str(warning.message) and "delete it, or set BCOS_KERNELS_CACHE" in str(warning.message)
    monkeypatch.setattr(tuning, "check_device", lambda: None)
    for refused in (lambda: tuned.store({}), tuned.delete, lambda: bk.tune(torch.nn.ReLU(), torch.ones(1))):
        with pytest.raises(ValueError, match=r"choices\.json .*: delete it, or set BCOS_KERNELS_CACHE"):
            refused()
    assert main(["tune", "--list"]) == 2 and str(cache) in capsys.readouterr().err
    assert cache.read_text(encoding="latin1") == text


def test_a_folder_in_its_place(cache):
    cache.mkdir(parents=True)
    with pytest.warns(UserWarning, match="Is a directory"):
        assert tuned.find(CALL, "forward") is None
    with pytest.raises(ValueError, match=r"Is a directory.*set BCOS_KERNELS_CACHE"):
        tuned.store({})


def test_a_place_that_cannot_be_written(cache):
    cache.parent.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"choices\.json cannot be written.*set BCOS_KERNELS_CACHE"):
        tuned.store({})


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        WAY,
        {"triton": {**WAY, "candidate": 1}},
        {"triton": {**WAY, "tile": [64, 32]}},
        {"triton": {**WAY, "tile": "64"}},
        {"triton": {**WAY, "seconds": {"vendor": 1e-5}}},
        {"triton": {**WAY, "seconds": {"one-pass": "1"}}},
        {"triton": {**WAY, "candidate": "no-pass"}},
        {"triton": {"candidate": "vendor"}},
    ],
)
def test_unknown_entries_are_ignored(entry, cache, capsys):
    cache.parent.mkdir()
    key = tuned.key(CALL, "forward")
    cache.write_text(json.dumps({"schema": 3, "devices": {tuned.device(): {key: entry}, "other": {"x": CHOICE}}}))
    assert choose(TRANSFORM, BOTH, CALL, "forward").reason.startswith("predicted")
    assert main(["tune", "--list"]) == 0
    assert "other: 1 choice" in capsys.readouterr().out


def test_writers_at_the_same_time_lose_nothing(cache):
    def write(writer: int) -> None:
        for i in range(8):
            tuned.store({f"{writer} {i}": CHOICE})

    writers = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(tuned.read()[tuned.device()]) == 48
    assert sorted(path.name for path in cache.parent.iterdir()) == ["choices.json", "choices.lock"]


def test_only_the_present_device_is_deleted(cache, monkeypatch):
    tuned.store({"a": CHOICE, "b": CHOICE})
    monkeypatch.setattr(tuned, "device", lambda index=None: "another")
    tuned.store({"c": CHOICE})
    assert tuned.delete() == 1 and tuned.delete() == 0
    assert [len(known) for known in tuned.read().values()] == [2]


def test_nothing_is_stored(cache, capsys):
    assert main(["tune", "--list"]) == 0
    assert capsys.readouterr().out == f"{cache}: not there, nothing was tuned\n"
