"""The choice among ways: measured once, kept in a file, and never in the way of a run."""

import json

import pytest
import torch

pytest.importorskip("triton")
from pipert.kernels.gpu import tuning
from pipert.kernels.gpu.tuning import Tuner, bucket, default_path

CUDA = torch.device("cuda", 0)


@pytest.fixture
def times(monkeypatch):
    """What each way takes; measuring one that is not here fails the test."""
    table = {}
    monkeypatch.setattr(tuning, "_measure", lambda run, name: table.pop(name))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return table


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "choices.json"


def nothing(name):
    raise AssertionError(f"{name} was run")


def test_the_fastest_is_taken_and_kept(times, path):
    times.update(a=3.0, b=1.0, c=2.0)
    assert Tuner(path).choose("key", ["a", "b", "c"], nothing, CUDA) == "b"
    assert json.loads(path.read_text()) == {"key": "b"}
    assert Tuner(path).choose("key", ["a", "b", "c"], nothing, CUDA) == "b"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_choice_that_is_no_longer_there_is_made_again(times, path):
    path.parent.mkdir()
    path.write_text('{"key": "old", "other": "x"}')
    times.update(a=1.0, b=2.0)
    assert Tuner(path).choose("key", ["a", "b"], nothing, CUDA) == "a"
    assert json.loads(path.read_text()) == {"key": "a", "other": "x"}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"key": 1}', "\x00\xff", '{"key": "elsewhere"}'])
def test_a_file_of_nonsense(times, path, text):
    path.parent.mkdir()
    path.write_bytes(text.encode("latin-1"))
    times.update(a=2.0, b=1.0)
    assert Tuner(path).choose("key", ["a", "b"], nothing, CUDA) == "b"
    assert json.loads(path.read_text()) == {"key": "b"}


def test_a_folder_that_cannot_be_made(times, tmp_path):
    (tmp_path / "file").write_text("")
    times.update(a=2.0, b=1.0)
    tuner = Tuner(tmp_path / "file" / "choices.json")
    assert tuner.choose("key", ["a", "b"], nothing, CUDA) == "b"
    assert tuner.choose("key", ["a", "b"], nothing, CUDA) == "b"


def test_two_processes_keep_each_others_choices(times, path):
    first, second = Tuner(path), Tuner(path)
    for tuner, key in ((first, "one"), (second, "two"), (first, "three")):
        times.update(a=2.0, b=1.0)
        tuner.choose(key, ["a", "b"], nothing, CUDA)
    assert json.loads(path.read_text()) == {"one": "b", "two": "b", "three": "b"}


def test_nothing_is_measured_where_it_must_not_be(times, path, monkeypatch):
    names = ["a", "b"]
    assert Tuner(path).choose("key", names, nothing, torch.device("cpu")) == "a"
    assert Tuner(path).choose("key", ["b"], nothing, CUDA) == "b"
    path.parent.mkdir()
    path.write_text('{"key": "b"}')
    torch.use_deterministic_algorithms(True)
    try:
        assert Tuner(path).choose("key", names, nothing, CUDA) == "a"
    finally:
        torch.use_deterministic_algorithms(False)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert Tuner(path).choose("key", names, nothing, CUDA) == "b"
    assert Tuner(path).choose("new", names, nothing, CUDA) == "a"


def test_a_way_that_fails_is_the_last_to_be_taken():
    def run(name):
        raise RuntimeError("out of resources")

    assert tuning._measure(run, "a") == float("inf")


def test_sizes_share_a_choice():
    assert [bucket(n) for n in (0, 1, 2, 3, 4096, 4097, 8192)] == [1, 1, 2, 4, 4096, 8192, 8192]


def test_where_choices_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "pipert" / "vocab_tuning.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_path().parts[-3:] == (".cache", "pipert", "vocab_tuning.json")
