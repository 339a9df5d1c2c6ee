"""What a failed node's report becomes in the coordinator's words."""

import pytest

from coordinator.courier import Reply, _cause
from umbel.wire import Refusal

RAISED = """<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'\x1b[36mray::ClientAppActor.run()\x1b[39m (7)
  File "/home/someone/client_app.py", line 39, in train
    raise RuntimeError("no data")
RuntimeError: no data

The above exception was the direct cause of the following exception:

  File "/home/someone/ray_actor.py", line 65, in run
    raise ClientAppException(str(ex)) from ex
flwr.clientapp.client_app.ClientAppException: \nException ClientAppException occurred. Message: no data'>"""
DIED = """<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly before finishing this task.
\tclass_name: ClientAppActor
\tpid: 8745
The actor is dead because its worker process has died.'>"""
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nValueError: wrong\n'


@pytest.mark.parametrize(
    ("report", "cause"),
    [
        (RAISED, "no data"),
        (DIED, "ActorDiedError: The actor died unexpectedly before finishing this task."),
        (TRACEBACK, "ValueError: wrong"),
        ("The SuperNode is gone.", "The SuperNode is gone."),
        ("<class 'OSError'>:<'disk full'>", "OSError: disk full"),
        ("", "the node failed"),
        ("\n \n", "the node failed"),
    ],
)
def test_the_cause_is_one_line_without_the_nodes_paths(report, cause):
    assert _cause(report) == cause


def test_a_reason_is_one_short_line():
    assert Reply(1, None, Refusal(80, "No\n\tdata:  mend it.")).reason == "No data: mend it."
    long = Reply(1, None, Refusal(80, 400 * "x")).reason
    assert (len(long), long[-1]) == (300, "…")
    assert Reply(1, None).reason == ""


@pytest.mark.timeout(20)
@pytest.mark.parametrize("report", ["<class '" + "a." * 500_000, "<class '" + "a" * 1_000_000, "x\n" * 500_000])
def test_a_report_of_megabytes_is_not_searched_whole(report):
    """Looking for a class name in it used to take time that grows with the square of its length."""
    assert len(Reply(1, None, Refusal(0, _cause(report))).reason) <= 300


def test_the_last_line_of_a_long_traceback_is_the_cause():
    frames = '  File "x.py", line 1, in f\n' * 10_000
    assert _cause(f"Traceback (most recent call last):\n{frames}ValueError: wrong\n") == "ValueError: wrong"
