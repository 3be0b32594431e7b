"""`llmperf advise`, from a store to a table: what is compared, chosen, and never guessed."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from support.history_records import record

from pytest_llmperf.commands import cli
from pytest_llmperf.core.record import Environment, MetricValue
from pytest_llmperf.history.store import open_store

GPU = Environment(
    facts={
        "device": "cuda",
        "device_name": "NVIDIA H200",
        "cpu_model": "Some CPU",
        "cpu_cores_limit": 16.0,
    }
)
CPU = Environment(facts={"device": "cpu", "device_name": "Some CPU", "cpu_model": "Some CPU"})


@pytest.fixture
def store(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    monkeypatch.chdir(tmp_path)
    with open_store("sqlite:///.llmperf/history.db", folder=tmp_path) as opened:
        yield opened


def value(name, found, width=0.01):
    low, high = (None, None) if found is None else (found * (1 - width), found * (1 + width))
    return MetricValue(
        name=name, unit="", direction="", formula=f"{name}/1", value=found, low=low, high=high, n=9
    )


def ran(strategy, speed, memory_gb, *, at="2026-11-23", ttft=0.1, **more):
    """A record of a run."""
    peak = None if memory_gb is None else memory_gb * 1e9
    found = {"throughput": speed, "ttft.p50": ttft, "memory.weights": 0.5e9, "memory.peak": peak}
    metrics = tuple(value(name, number) for name, number in found.items())
    fields = {
        "strategy": strategy,
        "created": f"{at}T05:00:00+00:00",
        "outcome": "PASS",
        "environment": GPU,
        "metrics": metrics,
    }
    return record(f"run {strategy} {at} {more}", **{**fields, **more})


def agreed(strategy, top1, perplexity, *, reference="fp32", **more):
    """A record of an agreement."""
    fields = {
        "workload_text": "agreement b8 n32",
        "workload_key": "a",
        "outcome": "PASS",
        "environment": GPU,
        "agreement": {"reference": reference},
        "metrics": (
            value("agreement.top1", top1, 0.005),
            value("agreement.perplexity_ratio", perplexity, 0.001),
        ),
    }
    return record(f"agreement {strategy} {more}", **{"strategy": strategy, **fields, **more})


@pytest.fixture
def measured(store):
    """fp32, bf16, a slow mix, and nf4 whose agreement nobody measured."""
    for each in (
        ran("fp32", 50, 28),
        ran("bf16", 90, 15, at="2026-11-22"),
        ran("bf16", 100, 14),
        ran("bf16-mixed", 40, 29),
        ran("nf4", 120, 5),
        agreed("bf16", 0.985, 1.002),
        agreed("bf16-mixed", 0.985, 1.003),
    ):
        store.add(each)
    return store


def advise(*arguments, code=0):
    done = CliRunner().invoke(cli.main, ["advise", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def as_json(*arguments, code=0):
    return json.loads(advise(*arguments, "--json", code=code).stdout)


def test_the_fastest_that_fits_is_named_with_what_it_was_chosen_among(measured):
    """The newest values count; the reference agrees with itself; what lacks data is not guessed."""
    lines = advise("--memory", "20GB", "--top1", "0.97").stdout.splitlines()
    assert lines[0] == "smollm2-135m on cuda, NVIDIA H200, Some CPU, 16 cores: decode b1 p128 n128"
    assert lines[1].startswith("memory: peak of a run; quality: agreement b8 n32 a against fp32")
    rows = {line.split()[0]: line for line in lines[4:8]}
    assert list(rows) == ["bf16", "fp32", "bf16-mixed", "nf4"]
    assert "100 tok/s ±1.0 %" in rows["bf16"]
    assert rows["bf16"].endswith("fastest that fits")
    assert "14.0 GB" in rows["bf16"]
    assert "100 %" in rows["fp32"]
    assert rows["fp32"].endswith("front")
    assert rows["bf16-mixed"].endswith("dominated by bf16, fp32")
    assert rows["nf4"].endswith("not compared: lacks top-1 (not in the history)")
    assert lines[-1] == "Fastest with memory <= 20.0 GB, top-1 >= 97.0 %: bf16, 100 tok/s."


def test_a_limit_inside_of_an_interval_is_said(measured):
    """0.985 is at least 0.983, its interval's end is not."""
    lines = advise("--top1", "98.3%").stdout.splitlines()
    assert lines[-2].startswith("Fastest with top-1 >= 98.3 %: bf16")
    assert lines[-1] == (
        "Only by its values: an interval of bf16 crosses a limit. The fastest for certain is fp32."
    )


def test_nothing_that_fits_is_an_exit_code(measured):
    """With how many were looked at."""
    said = advise("--memory", "1GB", code=1).stdout
    assert "No strategy meets the limits (memory <= 1.00 GB): 3 were compared, 1 lack data." in said


def test_the_same_as_json(measured):
    """Whole numbers, for a report."""
    found = as_json("--perplexity", "+1%", "--ttft", "200ms")
    assert (found["fastest"], found["front"], found["limits"]) == (
        "bf16",
        ["bf16", "fp32"],
        {"perplexity": 1.01, "ttft": 0.2},
    )
    assert found["dominated"] == [{"name": "bf16-mixed", "by": ["bf16", "fp32"]}]
    assert found["incomplete"] == [{"name": "nf4", "lacks": {"perplexity": "not in the history"}}]
    bf16 = next(choice for choice in found["choices"] if choice["name"] == "bf16")
    assert bf16["readings"]["memory"]["value"] == 14e9


def test_on_a_cpu_the_peak_holds_the_weights(store):
    store.add(ran("fp32", 10, 0.7, environment=CPU))
    found = as_json()
    assert found["choices"][0]["readings"]["memory"]["value"] == pytest.approx(0.7e9)
    assert found["memory"] == "peak of a run"
    assert found["left_out"] == ["top1"]


@pytest.mark.parametrize(("environment", "is_known"), [("CPU", False), ("GPU", True)])
def test_the_growth_that_a_cpu_once_called_its_peak_is_no_peak(store, environment, is_known):
    """58 MB beside a peak of a gigabyte would be the front of every choice."""
    plain = ran("fp32", 10, 0.058, environment=globals()[environment])
    metrics = tuple(
        replace(metric, formula="peak/1") if metric.name == "memory.peak" else metric
        for metric in plain.metrics
    )
    store.add(replace(plain, metrics=metrics))
    found = as_json(code=0 if is_known else 1)
    lacking = [row["lacks"] for row in found["incomplete"]]
    assert lacking == ([] if is_known else [{"memory": "not measurable when it was last measured"}])


def test_what_could_not_be_measured_is_lacking(store):
    """A null in the store is not a number, though an older record has one."""
    store.add(ran("fp32", 10, 3, at="2026-11-20"))
    store.add(ran("fp32", 10, None))
    found = as_json(code=1)
    assert found["incomplete"] == [
        {"name": "fp32", "lacks": {"memory": "not measurable when it was last measured"}}
    ]


def test_records_that_were_not_measured_validly_do_not_count(measured):
    """An invalid run is not the newest value of its strategy."""
    measured.add(ran("bf16", 999, 1, at="2026-11-25", outcome="INVALID"))
    assert as_json()["choices"][0]["readings"]["speed"]["value"] == 100


@pytest.mark.parametrize(
    ("added", "option", "chosen", "listed"),
    [
        (ran("fp32", 5, 1, model="other"), "--model", "smollm2", "  other"),
        (
            ran("fp32", 5, 1, environment=CPU, environment_key="c"),
            "--environment",
            "H200",
            "  c  cpu, Some CPU",
        ),
        (
            ran("fp32", 5, 1, workload_key="w2", workload_text="decode b8"),
            "--workload",
            "b1",
            "  w2  decode b8",
        ),
        (
            agreed("bf16", 0.9, 1.1, workload_key="a2"),
            "--agreement",
            "n32 a against",
            "  agreement b8 n32 a2 against fp32",
        ),
        (
            agreed("nf4", 0.9, 1.1, reference="bf16"),
            "--agreement",
            "against fp32",
            "  agreement b8 n32 a against bf16",
        ),
    ],
)
def test_where_several_could_be_meant_the_user_chooses(measured, added, option, chosen, listed):
    """All are listed, and a part of the text is enough."""
    measured.add(added)
    said = advise(code=1).stderr
    assert f"choose one with {option} TEXT." in said
    assert listed in said
    assert as_json(option, chosen)["fastest"] == "bf16"
    assert f"{option} 'nothing': none is." in advise(option, "nothing", code=1).stderr


def test_engines_are_told_apart(measured):
    """The same strategy under two engines is two choices."""
    measured.add(replace(ran("bf16", 200, 14), id="v", engine="vllm"))
    names = [choice["name"] for choice in as_json()["choices"]]
    assert names[:2] == ["bf16 [transformers]", "bf16 [vllm]"]


def test_limits_and_stores_that_cannot_be_read_are_one_message(store):
    """Before the store is opened."""
    message = "'8' is not a size above 0 with a unit, such as 8GB"
    assert message in advise("--memory", "8", code=1).stderr
    assert "holds no run that was measured" in advise(code=1).stderr
