"""Bad input is an error on the test that has it, never an internal error.

The rest of the session goes on.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest

OTHER = """
def test_other(llm):
    llm.run(WORK)
"""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("@pytest.mark.llmperf(strategy='nf5')\ndef test_bad(llm): pass", "*UsageError*nf5*"),
        (
            "@pytest.mark.llmperf(strategy='fp33')\ndef test_bad(llm): pass",
            "*UsageError*fp33*Did you mean 'fp32'*",
        ),
        (
            "@pytest.mark.llmperf(strategy='bf16+fp16')\ndef test_bad(llm): pass",
            "*UsageError*bf16*fp16*",
        ),
        (
            "@pytest.mark.llmperf(modell='x')\ndef test_bad(llm): pass",
            "*UsageError*modell*Did you mean 'model'*",
        ),
        (
            "@pytest.mark.llmperf(budget='long')\ndef test_bad(llm): pass",
            "*UsageError*budget='long'*",
        ),
        (
            "@pytest.mark.llmperf(strategies='bf16')\ndef test_bad(llm): pass",
            "*UsageError*strategies*list*",
        ),
        (
            "@pytest.mark.llmperf(engine='transformer')\ndef test_bad(llm): pass",
            "*UsageError*transformer*Did you mean*",
        ),
        (
            "@pytest.mark.llmperf(model='arch:small-llama')\ndef test_bad(llm_vllm): pass",
            "*UsageError*needs vllm*",
        ),
        (
            "@pytest.mark.llmperf('smollm2-135m')\ndef test_bad(llm): pass",
            "*UsageError*model='smollm2-135m'*",
        ),
        (
            (
                "@pytest.mark.llmperf(model='arch:falcon-8b', engine='transformers')\n"
                "def test_bad(llm): pass"
            ),
            "*UsageError*falcon-8b*falcon-7b*",
        ),
        (
            "@pytest.mark.parametrize('llm', [5], indirect=True)\ndef test_bad(llm): pass",
            "*UsageError*5*strategy*",
        ),
        ("def test_bad(llm): llm.run('decode')", "*UsageError*'decode' is not a workload*"),
        ("def test_bad(llm): llm.run(Decode(batch=0))", "*UsageError*batch=0*"),
        ("def test_bad(llm): PromptSet.from_jsonl('missing.jsonl')", "*UsageError*missing.jsonl*"),
        ("def test_bad(llm): PromptSet.bundled('short')", "*UsageError*'short'*short-chat*"),
    ],
)
def test_bad_input_is_an_error_on_its_test(project, run, body, message):
    """The message names the value; the other test still runs."""
    project(body + "\n" + OTHER)
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([message])
    assert "INTERNALERROR" not in result.stdout.str()


@pytest.mark.by_day_with_xdist
def test_an_error_is_shown_without_our_inside(project, run_both):
    """Of a declaration the message alone; of a test its own line.

    The short summary has room for what is wrong.
    """
    wrong_marker = "@pytest.mark.llmperf(strategy='nf5')\ndef test_declared(llm): pass\n"
    project(wrong_marker + "def test_called(llm):\n    llm.run('decode')\n")
    result = run_both()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(
        ["E   UsageError: strategy part 'nf5' is not known. Did you mean *"]
    )
    result.stdout.fnmatch_lines([">       llm.run('decode')"])
    result.stdout.fnmatch_lines(
        ["ERROR test_it.py::test_declared - UsageError: strategy part 'nf5'*"]
    )
    result.stdout.fnmatch_lines(["ERROR test_it.py::test_called - UsageError: 'decode' is not*"])
    result.stdout.no_fnmatch_line("*pytest_llmperf/*.py:*")


def test_a_file_that_cannot_be_written_is_an_error_of_what_was_measured(project, run_both):
    project("def test_stored(llm):\n    llm.run(WORK)\n")
    result = run_both("--llmperf-json=/proc/out.jsonl")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["E  *StoreError: JSON lines file /proc/out.jsonl cannot be written*"]
    )
    result.stdout.no_fnmatch_line("*pytest_llmperf/*.py:*")


def test_what_the_worker_said_is_shown_with_an_error_of_a_fixture(project, run):
    """In one line, with the place of its log."""
    project(
        "@pytest.mark.llmperf(model='scripted:fault=refuse@open')\n"
        "def test_bad(llm):\n    llm.run(WORK)\n"
    )
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["E  *LoadError: *", "E  *In the worker (log: *); -vv shows *"])
    result.stdout.no_fnmatch_line("*Traceback (most recent call last)*")


@pytest.mark.parametrize("option", ["-vv", "--tb=long"])
def test_the_traceback_of_the_worker_is_shown_to_who_asks(project, run, option):
    """It is not lost."""
    project(
        "@pytest.mark.llmperf(model='scripted:fault=refuse@open')\n"
        "def test_bad(llm):\n    llm.run(WORK)\n"
    )
    run(option).stdout.fnmatch_lines(["*In the worker (log: *):", "*Traceback (most recent call*"])


BAD_OPTIONS = [
    ("device=gpu", "--llmperf-device='gpu'*Did you mean 'cuda'?*"),
    ("budget=soon", "--llmperf-budget='soon': a number above 0*--llmperf-budget=20."),
    ("budget=30s", "--llmperf-budget='30s': a number above 0*--llmperf-budget=30."),
    ("precision=2%", "--llmperf-precision='2%': a number above 0*--llmperf-precision=2."),
    ("timeout=-1", "--llmperf-timeout='-1': a number above 0*"),
    ("processes=many", "--llmperf-processes='many': a whole number*"),
    ("start-method=fork", "--llmperf-start-method='fork'*Did you mean 'forkserver'?*"),
    ("against-limits=thruput:5%", "--llmperf-against-limits*Did you mean 'throughput'?*"),
    ("store=mongo://x", "--llmperf-store: *'mongo'*"),
    ("store=foo", "--llmperf-store: *Did you mean 'sqlite:///foo'?*"),
    ("strategy=bf61", "--llmperf-strategy='bf61': *Did you mean 'bf16'?"),
    ("strategy=bf16,float16", "--llmperf-strategy='float16': *Did you mean 'fp16'?"),
    ("reference=fp31", "--llmperf-reference='fp31': *Did you mean 'fp32'?"),
    ("cluster=ato", "--llmperf-cluster*'ato'*Did you mean 'auto'?*"),
    ("python=vllm", "--llmperf-python='vllm': ENGINE=PATH *"),
    ("python=transfomers=/bin/sh", "*'transfomers'*Did you mean 'transformers'?*"),
    ("gate=thruput:5%", "--llmperf-gate*Did you mean 'throughput'?*"),
]


@pytest.mark.parametrize(("option", "message"), BAD_OPTIONS)
@pytest.mark.parametrize("place", ["command line", "ini file"])
def test_a_bad_option_ends_the_session_at_its_start(pytester, run, option, message, place):
    """Exit code 4 and one line, also where no test is ours; no test runs."""
    pytester.makepyfile(test_plain="def test_plain(): pass")
    name, _, value = option.partition("=")
    if place == "command line":
        result = run(f"--llmperf-{option}")
    else:
        pytester.makeini(f"[pytest]\nllmperf_{name.replace('-', '_')} = {value}\n")
        result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: {message}"])
    assert "test_plain" not in result.stdout.str()
    assert "Traceback" not in result.stderr.str()


def test_a_bad_option_ends_a_session_of_xdist_before_its_workers_start(pytester, run):
    """The controller says it, once."""
    pytester.makepyfile(test_plain="def test_plain(): pass")
    result = run("-n", "2", "--llmperf-budget=soon")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().count("--llmperf-budget='soon'") == 1


def test_a_bad_prompts_line_is_named_by_number(project, pytester, run):
    """The second line is not JSON."""
    pytester.makefile(".jsonl", prompts='{"prompt": "fine"}\nnot json\n')
    project("def test_bad(llm): PromptSet.from_jsonl('prompts.jsonl')")
    run().stdout.fnmatch_lines(["*UsageError*prompts.jsonl:2*"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("fault=die@run", "*WorkerDied*"),
        ("fault=refuse@open", "*LoadError*"),
        ("fault=oom@open", "*OutOfMemory*"),
        ("fault=short_output@run", "*InvalidRun*"),
    ],
)
def test_a_fault_of_the_worker_is_that_tests_error(project, run_both, fault, message):
    """The next test loads its own model and runs."""
    project(
        """
def test_bad(llm):
    llm.run(WORK)

@pytest.mark.llmperf(model="scripted:tpot=10ms")
def test_other(llm):
    llm.run(WORK)
""",
        script=f"tpot=10ms,{fault}",
    )
    result = run_both()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines([message])


def test_a_strategy_that_is_not_in_effect_is_an_error_and_nothing_is_sampled(
    project, run_both, lines
):
    """It claims bf16 and holds float32."""
    project(
        """
@pytest.mark.parametrize("llm", ["bf16", "fp32"], indirect=True)
def test_it(llm):
    llm.run(WORK)
""",
        script="tpot=10ms,lie=weights_dtype:float32",
    )
    result = run_both("--llmperf-json=out.jsonl")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*NotInEffect*'bf16' is not in effect*float32*"])
    assert [r["strategy"] for r in lines()] == ["fp32"]


def test_a_direct_parameter_named_llm_is_an_error_that_says_indirect(project, run):
    """It would hand the test a text."""
    project("@pytest.mark.parametrize('llm', ['fp16'])\ndef test_bad(llm): llm.run(WORK)\n" + OTHER)
    result = run()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*UsageError*indirect=True*"])


MISSING = [
    (
        "model='arch:tiny-llama'",
        (
            "engine 'transformers' needs torch, which is not installed: "
            "pip install 'pytest-llmperf[[]transformers]'"
        ),
    ),
    ("model='models/nope'", "model 'models/nope': *there is no *models/nope.*"),
    ("model='chatbot:biuld'", "*has no 'biuld'. Did you mean 'build'?*"),
    ("model='chatbto:build'", "*there is no module 'chatbto'.*"),
]


@pytest.fixture
def no_worker(monkeypatch):
    """Make the start of a worker fail."""

    def started(*_args, **_keywords):
        raise AssertionError("a worker was started")

    monkeypatch.setattr("pytest_llmperf.session.session.start_worker", started)


@pytest.mark.parametrize(("argument", "message"), MISSING)
def test_what_is_missing_is_said_before_a_worker_starts(
    pytester, run, monkeypatch, no_worker, argument, message
):
    """One line at set-up, and the same under --llmperf-plan."""
    pytester.mkdir("models")
    pytester.makepyfile(
        chatbot="def build(): ...",
        test_it=f"""
            import pytest

            @pytest.mark.llmperf({argument})
            def test_bad(llm): pass
        """,
    )
    if "arch" in argument:
        find_spec = importlib.util.find_spec
        version = importlib.metadata.distribution
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, *more: None if name == "torch" else find_spec(name, *more),
        )

        def distribution(name):
            if name == "torch":
                raise importlib.metadata.PackageNotFoundError(name)
            return version(name)

        monkeypatch.setattr("importlib.metadata.distribution", distribution)
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"E   UsageError: {message}"])
    result.stdout.no_fnmatch_line("*Traceback*")
    assert len([line for line in result.outlines if line.startswith("E   ")]) == 1
    plan = run("--llmperf-plan").stdout
    plan.fnmatch_lines(["ERROR test_it.py::test_bad: *", "0 tests would run, *, 1 in error"])


MISSPELT = [
    ("llm.run(WORK).thruput", "RunResult has no 'thruput'. Did you mean 'throughput'?"),
    (
        "llm.run(WORK).tokens_per_second",
        "RunResult has no 'tokens_per_second'. Did you mean 'throughput'?",
    ),
    ("llm.run(WORK).peak_memory", "RunResult has no 'peak_memory'. Did you mean 'memory.peak'?"),
    ("llm.run(WORK).zzzz", "RunResult has no 'zzzz'. It has: throughput, *"),
    ("llm.run(WORK).ttft.p51", "Latencies has no 'p51'. Did you mean 'p50'?"),
    ("llm.run(WORK).ttft.median", "Latencies has no 'median'. Did you mean 'p50'?"),
    ("llm.run(WORK).memory.peek", "Memory has no 'peek'. Did you mean 'peak'?"),
    (
        "llm.run(WORK).memory < 1",
        "Memory is several quantities and no number: compare one of them, for example .weights *",
    ),
    ("llm.run(WORK) > 1", "RunResult is several quantities and no number: *.throughput *"),
    ("llm.rnu(WORK)", "Model has no 'rnu'. Did you mean 'run'?"),
    ("llm.agreement(llm).top_1", "Agreement has no 'top_1'. Did you mean 'top1'?"),
    (
        "llm.agreement(llm, prompt=1)",
        ".agreement(prompt=…): argument 'prompt' is not known. Did you mean 'prompts'?",
    ),
    ("llm.run(batch=1)", ".run(batch=…): argument 'batch' is not known.* It takes: workload, *"),
    (
        "llm_factory('bf16', engin='scripted')",
        "llm_factory(engin=…): argument 'engin' is not known. Did you mean 'engine'?",
    ),
    (
        "Decode(prompt_token=8)",
        (
            "Decode(prompt_token=…): argument 'prompt_token' is not known. "
            "Did you mean 'prompt_tokens'?"
        ),
    ),
    ("llmperf.mesure(len)", "Handle has no 'mesure'. Did you mean 'measure'?"),
]


@pytest.mark.parametrize(("call", "message"), MISSPELT)
def test_what_a_test_misspells_is_its_error_with_a_suggestion(project, run, call, message):
    """An ERROR, since nothing was measured, and not a FAILED; the test's own line is shown."""
    project(f"def test_bad(llm, llm_factory, llmperf):\n    assert {call}\n")
    result = run()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f">       assert {call}", f"E       *: {message}"])


def test_a_marker_suggests_a_device(project, run):
    """By meaning."""
    project("@pytest.mark.llmperf(device='gpu')\ndef test_bad(llm): pass\n")
    run().stdout.fnmatch_lines(["E   UsageError: device 'gpu' is not known. Did you mean 'cuda'?*"])


@pytest.mark.parametrize("limit", ["'5%'", "0.05", "'0.05'", "' 5% '"])
def test_a_limit_is_written_as_a_share_or_in_percent(project, run, limit):
    """In the marker as on the command line."""
    project(f"@pytest.mark.llmperf(gate={{'throughput': {limit}}})\ndef test_it(llm): pass\n")
    run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ("{'throughput': 5}", "*the limit of throughput is 5. Write it as '5%' or 0.05, *"),
        ("{'throughput': '500%'}", "*the limit of throughput is '500%'. Write it as '5%' *"),
        ("{'throughput': 'five'}", "*the limit of throughput is 'five'. Write it as '5%' *"),
        ("{'throughput': True}", "*the limit of throughput is True. Write it as '5%' *"),
        ("'throughput:5%'", "*(gate='throughput:5%'): dict is needed, not str."),
    ],
)
def test_a_limit_that_cannot_be_used_says_how_one_is_written(project, run, gate, message):
    """No message refuses what it proposes."""
    project(f"@pytest.mark.llmperf(gate={gate})\ndef test_it(llm): pass\n")
    run().stdout.fnmatch_lines([f"E   UsageError: {message}"])


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest 9 has native types")
def test_ini_values_may_have_the_types_of_toml(pytester, run, project):
    """Numbers and truth values, in the table that pytest 9 reads with its types."""
    project("def test_speed(llm): llm.run(WORK)")
    values = "llmperf_budget = 1\nllmperf_precision = 2.5\nllmperf_skip = true"
    pytester.makepyprojecttoml(f"[tool.pytest]\n{values}\n")
    run().assert_outcomes(skipped=1)
    pytester.makepyprojecttoml("[tool.pytest]\nllmperf_budget = -1\n")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --llmperf-budget='-1': a number above 0 is needed, *"])
    pytester.makepyprojecttoml("[tool.pytest]\nllmperf_budget = [1]\n")
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.str().count("pyproject.toml") == 1
    result.stderr.fnmatch_lines(["ERROR: llmperf_budget in *pyproject.toml: *expects a string*"])
