"""Finding a reward, and telling a person why it cannot be used."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import pytest

from engine.judging import reward_specs
from rewards.load import RewardError, build_reward, check_columns, load_reward, read_reward, told
from workers.config import RewardConfig

GOOD = "def good(response: str, answer: str, **row) -> float:\n    return float(response == answer)\n"


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(autouse=True)
def import_path_is_left_as_it_was():
    path, finders = list(sys.path), list(sys.meta_path)
    yield
    sys.path[:], sys.meta_path[:] = path, finders


def test_a_file_and_a_module_are_both_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_reward(f"{written(tmp_path, GOOD)}:good")(response="1", answer="1") == 1.0
    monkeypatch.chdir(tmp_path)
    assert load_reward("mine.py:good")(response="1", answer="2") == 0.0
    assert load_reward("rewards.gsm8k:correct")(response="#### 1", answer="1") == {"correct": 1.0}


def told_by(function) -> str:
    try:
        function(response="1", answer="1")
    except KeyError as error:
        return told(error)
    return "nothing"


def test_a_source_builds_the_same_function_where_the_file_is_not(tmp_path: Path) -> None:
    file = written(tmp_path, GOOD + "    # the end\ndef bad(response, answer):\n    raise KeyError(response)\n")
    source = pickle.loads(pickle.dumps(read_reward(f"{file}:bad")))
    file.unlink()
    tmp_path.rmdir()
    with pytest.raises(RewardError) as error:
        raise RewardError(told_by(build_reward(source)))
    assert f'File "{file}", line 5, in bad' in str(error.value)
    assert "raise KeyError(response)" in str(error.value)
    assert "/load.py" not in str(error.value)


def test_a_file_may_import_its_neighbours_and_take_any_name(tmp_path: Path) -> None:
    import math

    written(tmp_path, "POINTS = 0.5\n", "points_of_mine.py")
    text = "from dataclasses import dataclass\nfrom points_of_mine import POINTS\n"
    text += "@dataclass\nclass Kept:\n    points: float\n"
    text += "def half(response, answer):\n    return Kept(POINTS).points\n"
    file = written(tmp_path, text, "math.py")
    assert load_reward(f"{file}:half")(response="", answer="") == 0.5
    assert sys.modules["math"] is math


@pytest.mark.parametrize("spec", ["", "mine.py", ":good", "mine.py:", "mine.py:not a name"])
def test_a_spec_without_a_place_or_a_name_is_explained(spec: str) -> None:
    with pytest.raises(RewardError, match=r"write path/to/file\.py:name or package.module:name"):
        load_reward(spec)


def test_a_missing_file_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RewardError, match="no such file") as error:
        load_reward("nowhere.py:good")
    assert str(tmp_path / "nowhere.py") in str(error.value)


def test_a_folder_or_bytes_in_place_of_a_file_are_explained(tmp_path: Path) -> None:
    (tmp_path / "bytes.py").write_bytes(b"\xff\xfe\x00")
    for place in (f"{tmp_path}/", tmp_path / "bytes.py"):
        with pytest.raises(RewardError, match="cannot be read"):
            load_reward(f"{place}:good")


@pytest.mark.parametrize("spec", ["no_such_package:good", "rewards.no_such_one:good", "no_such_package.deep.er:good"])
def test_a_missing_module_is_explained(spec: str) -> None:
    with pytest.raises(RewardError, match=r"there is no module .* on the import path; .* path/to/file.py:good"):
        load_reward(spec)


def test_a_missing_name_lists_the_functions_and_the_nearest(tmp_path: Path) -> None:
    text = "from math import sqrt\nfrom os.path import join\nLIMIT = 3\n" + GOOD + "def _hidden(): ...\n"
    file = written(tmp_path, text)
    with pytest.raises(RewardError, match=r"there is no goood in it; its functions are good \(did you mean good\?\)"):
        load_reward(f"{file}:goood")
    with pytest.raises(RewardError, match=r"LIMIT is 3, not a function; its functions are good"):
        load_reward(f"{file}:LIMIT")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import no_such_package_at_all\n", "No module named 'no_such_package_at_all'"),
        ("x = 1\nvalue = {}['key']\n", "line 2"),
        ("def good(response, answer:\n", "SyntaxError"),
        ("import sys\nsys.exit('usage: mine.py FILE')\n", "usage: mine.py FILE"),
    ],
)
def test_a_file_that_raises_when_imported_shows_its_last_lines(tmp_path: Path, text: str, said: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(RewardError, match="importing it raised") as error:
        load_reward(f"{file}:good")
    assert said in str(error.value) and str(file) in str(error.value)
    assert "importlib" not in str(error.value) and "load.py" not in str(error.value)


def test_an_argument_that_is_also_a_column_is_an_error(tmp_path: Path) -> None:
    config = RewardConfig(function=f"{written(tmp_path, GOOD)}:good", arguments={"scale": 1.0})
    [spec] = reward_specs(config)
    check_columns(spec, {"level": 2})
    with pytest.raises(RewardError, match="both have scale"):
        check_columns(spec, {"scale": 2})


def test_modules_beside_the_file_travel_with_it_as_texts(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "parts").mkdir(parents=True)
    written(folder, "from parts.deep import POINTS\ndef points():\n    return POINTS\n", "scoring_of_mine.py")
    written(folder / "parts", "POINTS = 0.25\n", "deep.py")
    written(folder, "raise RuntimeError('nobody imports this')\n", "other.py")
    file = written(folder, "from scoring_of_mine import points\ndef f(response, answer):\n    return points()\n")
    source = pickle.loads(pickle.dumps(read_reward(f"{file}:f")))
    assert sorted(source.beside) == ["parts/deep.py", "scoring_of_mine.py"]
    shutil.rmtree(folder)
    assert build_reward(source)(response="", answer="") == 0.25


def test_two_rewards_with_different_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    sources = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        written(folder, f"POINTS = {number}\n", "shared_by_two.py")
        text = "def f(response, answer):\n    return 1.0\nimport shared_by_two\n"
        sources.append(read_reward(f"{written(folder, text)}:f"))
    build_reward(sources[0])
    with pytest.raises(RewardError, match=r"another reward imports another shared_by_two\.py; rename"):
        build_reward(sources[1])
