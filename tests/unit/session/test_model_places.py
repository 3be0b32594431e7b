"""A relative path of a model means one folder, wherever in the project pytest was started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pytest_llmperf.engines.models.names import model_ref
from pytest_llmperf.errors import UsageError
from pytest_llmperf.session.declare import Declaration, load_plan
from pytest_llmperf.session.model import Model
from pytest_llmperf.session.session import LlmperfSession
from pytest_llmperf.settings.settings import Settings
from pytest_llmperf.workers.place import Place


@dataclass
class AnySettings:
    """Those that a plan is made from."""

    root: Path
    device: str = "cpu"
    server: None = None
    pythons: tuple[str, ...] = ("transformers",)


class Nowhere:
    """A place without GPUs, whose packages are its own."""

    gpus = ()
    has_our_packages = False


def planned(root, strategy="auto", **declared):
    settings, place = cast("Settings", AnySettings(root)), cast("Place", Nowhere())
    return load_plan(Declaration(**declared), strategy, settings, place=place)


@pytest.fixture
def project(tmp_path):
    """A project with a model in ./models, and a folder of tests."""
    for folder in ("models/tiny-one", "sub"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "models" / "tiny-one" / "config.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("start", [".", "sub", "models"])
@pytest.mark.parametrize("name", ["models/tiny-one", "./models/tiny-one"])
def test_a_models_folder_is_looked_up_from_the_root(project, monkeypatch, start, name):
    """From the root, from a folder of tests, from beside the model."""
    monkeypatch.chdir(project / start)
    model = planned(project, model=name).model
    assert (model.kind, model.name) == ("folder", name)
    assert Path(model.location) == project / "models" / "tiny-one"


def test_the_working_directory_comes_second(project, monkeypatch):
    """A folder that only it has is found as before; where both have one, the root's is meant."""
    beside = project / "sub" / "models" / "tiny-two"
    beside.mkdir(parents=True)
    (beside / "config.json").write_text("{}")
    (project / "sub" / "models" / "tiny-one").mkdir()
    (project / "sub" / "models" / "tiny-one" / "config.json").write_text("{}")
    monkeypatch.chdir(project / "sub")
    assert Path(planned(project, model="models/tiny-two").model.location).resolve() == beside
    one = planned(project, model="models/tiny-one").model.location
    assert Path(one) == project / "models" / "tiny-one"


def test_the_hub_is_not_asked_for_a_name_that_begins_as_a_folder_of_the_project(project):
    """A misspelt folder is an error, not the download of somebody's repository of that name."""
    with pytest.raises(UsageError, match=r"'models/tiny-onee': .*/models is a folder of the proj"):
        planned(project, model="models/tiny-onee")
    assert planned(project, model="some-org/tiny-onee").model.kind == "hub"
    assert model_ref("models/tiny-onee").kind == "hub"  # outside of a project


def test_a_path_that_is_nowhere_is_named_as_the_root_sees_it(project, monkeypatch):
    """That is the place it was meant for."""
    monkeypatch.chdir(project / "sub")
    with pytest.raises(UsageError, match=rf"there is no file or folder {project}/models/no\."):
        planned(project, model="./models/no")


def test_an_assistant_is_looked_up_like_the_model(project, monkeypatch):
    """Its name stays as it was written where a worker finds it by that."""
    strategy = "assisted:models/tiny-one"
    monkeypatch.chdir(project)
    assert planned(project, strategy, model="models/tiny-one").assist == "models/tiny-one"
    monkeypatch.chdir(project / "sub")
    plan = planned(project, strategy, model="models/tiny-one")
    assert plan.assist == str(project / "models" / "tiny-one")
    assert plan.strategy == strategy
    assert planned(project, "assisted:smollm2-135m", model="smollm2-135m").assist == "smollm2-135m"


def test_what_was_not_read_is_noted_with_the_models_name(project):
    """In the summary, whatever the runs were."""
    notes = []
    effective = SimpleNamespace(quantized=None)
    opened = SimpleNamespace(opened=SimpleNamespace(effective=effective, not_read=("not read: x",)))
    pool = SimpleNamespace(open=lambda _: opened)
    session = cast("LlmperfSession", SimpleNamespace(pool=pool, note=notes.append))
    Model(session, planned(project, model="models/tiny-one")).load()
    assert notes == ["models/tiny-one auto: not read: x"]
