"""Living with other plugins."""

from __future__ import annotations


def test_a_test_that_another_plugin_adds_late_is_declared_when_it_runs(project, pytester, run):
    """Items that appear after everybody's collection hooks are measured too.

    Rerun and repeat plugins make such items.
    """
    project("def test_speed(llm):\n    llm.run(WORK)\n")
    pytester.makeconftest("""
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_collection(session):
            result = yield
            item = session.items[0]
            name = item.name + "-again"
            again = type(item).from_parent(item.parent, name=name, callobj=item.obj)
            session.items.append(again)
            return result
    """)
    run("-v").assert_outcomes(passed=2)
