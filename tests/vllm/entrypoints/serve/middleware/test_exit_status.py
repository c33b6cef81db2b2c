"""When an engine has died; tests of servers look at their exit status."""

from threading import Event
from types import SimpleNamespace

import pytest

from vllm_nemotron_vl.entrypoints.serve.middleware.exit_status import _has_died


def engine(failed=None, dead=False, stopped=False):
    manager = SimpleNamespace(manager_stopped=Event(), failed_proc_name=failed)
    if stopped:
        manager.manager_stopped.set()
    resources = SimpleNamespace(engine_manager=manager, engine_dead=dead)
    return SimpleNamespace(engine_core=SimpleNamespace(resources=resources))


@pytest.mark.parametrize(
    ("state", "died"),
    [
        ({}, False),
        ({"failed": "EngineCore_0"}, True),
        ({"failed": "EngineCore_0", "stopped": True}, True),
        ({"dead": True}, True),
        ({"dead": True, "stopped": True}, False),  # it was told to end
    ],
)
def test_an_engine_has_died_without_being_told_to(state, died):
    assert _has_died(engine(**state)) == died


def test_an_engine_of_another_process_is_not_judged():
    other = engine(failed="EngineCore_0", dead=True)
    other.engine_core.resources.engine_manager = None
    for one in (other, SimpleNamespace(engine_core=SimpleNamespace()), None):
        assert not _has_died(one)
