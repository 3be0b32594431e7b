"""The JSON Schema of a record: published, true of every record, and changed by versions alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from jsonschema_rs import Draft202012Validator, meta
from support.history_records import RECORDS, record

from pytest_llmperf.commands import cli
from pytest_llmperf.core import record_json
from pytest_llmperf.core.record import SCHEMA_VERSION
from pytest_llmperf.core.record_schema import broken, record_schema

ROOT = Path(__file__).parents[3]
PUBLISHED = ROOT / "docs" / "reference"
GOLDEN = Path(__file__).parents[1] / "golden"
VALIDATOR = Draft202012Validator(record_schema())


def published(version):
    return json.loads((PUBLISHED / f"record-v{version}.schema.json").read_text(encoding="utf-8"))


def test_the_published_schema_is_that_of_the_code():
    """A changed field shows here first: the message says what to do."""
    changed = broken(published(SCHEMA_VERSION), record_schema())
    assert not changed, (
        f"{changed}: raise SCHEMA_VERSION, and add to UPGRADES what reads the older version"
    )
    assert published(SCHEMA_VERSION) == record_schema(), (
        f"llmperf schema --out docs/reference/record-v{SCHEMA_VERSION}.schema.json writes it anew"
    )


def test_every_version_is_published_and_has_lines_that_are_still_read():
    """Lines of each version lie in golden/: they validate against their schema, and are read."""
    for version in range(1, SCHEMA_VERSION + 1):
        lines = (GOLDEN / f"records-v{version}.jsonl").read_bytes().splitlines()
        assert lines
        validator = Draft202012Validator(published(version))
        for line in lines:
            validator.validate(json.loads(line))
            assert record_json.decode(line).schema_version == SCHEMA_VERSION


def test_every_older_version_has_a_reader():
    """One step each; none for a version that is not there yet."""
    assert set(record_json.UPGRADES) == set(range(1, SCHEMA_VERSION))


def test_the_schema_is_a_schema_and_its_page_links_to_it():
    """By its own dialect."""
    meta.validate(record_schema())
    assert f"(record-v{SCHEMA_VERSION}.schema.json)" in (PUBLISHED / "record-schema.md").read_text(
        encoding="utf-8"
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(RECORDS)
def test_any_record_validates(made):
    """Also with NaN, infinities, and whatever texts."""
    VALIDATOR.validate(json.loads(record_json.encode(made)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda line: line.pop("test"),
        lambda line: line.update(created=5),
        lambda line: line.update(samples={"throughput": ["fast"]}),
        lambda line: line["metrics"][0].update(value="14.2"),
        lambda line: line["metrics"][0].pop("formula"),
        lambda line: line.update(schema_version=SCHEMA_VERSION + 1),
    ],
)
def test_what_is_no_record_does_not_validate(spoil):
    """Otherwise the schema would hold nothing."""
    line = json.loads(record_json.encode(record("a")))
    assert VALIDATOR.is_valid(line)
    spoil(line)
    assert not VALIDATOR.is_valid(line)


def changed(change):
    new = copy.deepcopy(record_schema())
    change(new["$defs"])
    return broken(record_schema(), new)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda defs: defs["Record"]["properties"].pop("label"), "Record.label is gone"),
        (
            lambda defs: defs["MetricValue"]["properties"].update(n={"type": "string"}),
            "MetricValue.n was {'type': 'integer'",
        ),
        (
            lambda defs: defs["Effective"]["required"].append("sparsity"),
            "Effective.sparsity has no default",
        ),
        (lambda defs: defs.pop("Mark"), "Mark is gone"),
        (lambda defs: defs["Number"].update(anyOf=[]), "Number was"),
        (
            lambda defs: defs["Record"]["properties"]["outcome"].update(default="PASS"),
            "Record.outcome was",
        ),
    ],
)
def test_a_changed_field_is_named(change, said):
    """What is gone, of another type, newly needed, or read differently where it is missing."""
    (line,) = changed(change)
    assert line.startswith(said)


def test_a_new_field_with_a_default_and_another_description_change_nothing():
    """Readers skip what they do not know."""
    assert (
        changed(
            lambda defs: defs["Record"]["properties"].update(mood={"type": "string", "default": ""})
        )
        == []
    )
    assert changed(lambda defs: defs["Record"].update(description="Another text.")) == []


def renamed_mark(defs):
    defs["Sign"] = defs.pop("Mark")
    defs["Record"]["properties"]["marks"]["items"] = {"$ref": "#/$defs/Sign"}


def test_another_name_of_a_definition_changes_nothing_and_another_field_of_it_does():
    """A line of the store holds no names of definitions.

    What they say of its fields is compared all the same.
    """
    assert changed(renamed_mark) == []

    def renamed_and_cut(defs):
        renamed_mark(defs)
        defs["Sign"]["properties"].popitem()

    (line,) = changed(renamed_and_cut)
    assert line.startswith("Mark.")
    assert line.endswith(" is gone")


def test_the_command_prints_it_and_refuses_to_break_what_was_published(tmp_path):
    """The file stays as it is, and the message says what is needed."""
    run = CliRunner().invoke
    assert json.loads(run(cli.main, ["schema"]).stdout) == record_schema()
    out = tmp_path / "record.json"
    assert run(cli.main, ["schema", "--out", str(out)]).exit_code == 0
    older = json.loads(out.read_text())
    older["$defs"]["Record"]["properties"]["mood"] = {"type": "string"}
    out.write_text(json.dumps(older))
    done = run(cli.main, ["schema", "--out", str(out)])
    assert done.exit_code == 1
    assert "Record.mood is gone" in done.stderr
    assert "Raise SCHEMA_VERSION" in done.stderr
    assert json.loads(out.read_text()) == older
    older["$id"] = "urn:pytest-llmperf:record:0"
    out.write_text(json.dumps(older))
    assert run(cli.main, ["schema", "--out", str(out)]).exit_code == 0
    out.write_text("[]")
    assert "is not a schema of a record" in run(cli.main, ["schema", "--out", str(out)]).stderr


def test_an_older_record_goes_through_every_step(monkeypatch):
    """With two versions that do not exist yet: renamed, then split."""
    monkeypatch.setattr(record_json, "SCHEMA_VERSION", 3)
    line = json.loads(record_json.encode(record("a", label="x")))
    line["tag"] = line.pop("label")
    line["metrics"][0]["value"] = "nan"
    steps = {
        1: lambda old: {**old, "name": old["tag"]},
        2: lambda old: {**old, "label": old["name"]},
    }
    monkeypatch.setattr(record_json, "UPGRADES", steps)
    found = record_json.decode(json.dumps(line))
    assert (found.label, found.schema_version) == ("x", 3)
    assert repr(found.metrics[0].value) == "nan"


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(version):
    """And not read as if it were the first."""
    with pytest.raises(
        ValueError, match=f"'a' has schema version {version}, and there never was one"
    ):
        record_json.decode(record_json.encode(record("a", schema_version=version)))
