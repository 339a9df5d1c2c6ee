"""What of an error leaves the agent."""

import pytest

from client.agent.faults import refuse
from umbel.errors import DataError, SiteError


class Context:
    """Keeps what a call was ended with."""

    def set_trailing_metadata(self, metadata):
        self.metadata = dict(metadata)

    def is_active(self):
        return False

    def abort(self, code, details):
        self.details = details
        raise RuntimeError("aborted")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SiteError("This site is closed."), "This site is closed."),
        (DataError("train.jsonl line 7: scan-0812.png cannot be decoded."), "its operator finds why in the site's log"),
        (ValueError("scan-0812.png"), "failed unexpectedly"),
    ],
)
def test_what_is_wrong_with_the_data_stays_at_the_site(error, told):
    context = Context()
    with pytest.raises(RuntimeError, match="aborted"):
        refuse(context, error)
    assert told in context.details
    assert "0812" not in context.details
    assert getattr(context, "metadata", {"umbel-error": ""}).get("umbel-error") in ("", type(error).__name__)
