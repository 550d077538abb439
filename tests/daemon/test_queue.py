"""The queue under an operator's hands: seen before it is changed, changed, and taken back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.letters import message, wire
from tests.daemon.running import Daemon, free_ports, run_cli, until


@pytest.fixture
def stuck(template: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon whose next hop answers nowhere, with three deliveries that wait."""
    (nowhere,) = free_ports(1)
    hop = f"smtp:127.0.0.1:{nowhere}"
    delivery = {"default_route": hop, "undo_seconds": 3600}
    with Daemon(tmp_path / "stuck", template=template, delivery=delivery) as running:
        running.start()
        with running.submission(running.alice) as client:
            for name in ("one@first.test", "two@first.test", "three@second.test"):
                letter = wire(message(name, From=running.alice.address))
                client.sendmail(running.alice.address, [name], letter)
        until(lambda: len(running.deliveries(state="deferred")) == 3, "all three are deferred")
        yield running


def test_many_are_held_after_a_preview_and_let_go_by_undo(stuck: Daemon) -> None:
    shown = stuck.cli("queue", "hold", "--domain", "first.test", "--preview")
    assert (shown["deliveries"], shown["organizations"]) == (2, 1)
    assert {row["recipient"] for row in shown["sample"]} == {"one@first.test", "two@first.test"}
    assert stuck.deliveries(state="held") == []
    refused = stuck.cli("queue", "hold", "--domain", "first.test", status=1)
    assert refused["error"]["code"] == "not_confirmed"
    done = stuck.cli("queue", "hold", "--domain", "first.test", "--yes")
    assert done["changed"] == 2
    assert len(stuck.deliveries(state="held")) == 2
    (listed,) = stuck.cli("queue", "actions")["actions"]
    assert (listed["id"], listed["kind"], listed["changed"]) == (done["action"], "hold", 2)
    assert stuck.cli("queue", "undo", done["action"]) == {
        "action": done["action"],
        "restored": 2,
        "gone_on": 0,
    }
    assert stuck.deliveries(state="held") == []
    assert stuck.cli("queue", "undo", done["action"], status=1)["error"]["code"] == "not_found"


def test_what_was_cancelled_by_mistake_is_sent_after_all(stuck: Daemon) -> None:
    (row,) = [one for one in stuck.deliveries() if one["recipient"] == "three@second.test"]
    done = stuck.cli("queue", "cancel", row["id"])
    assert len(stuck.deliveries()) == 2
    assert (stuck.data / "spool" / row["message"]).exists()
    assert stuck.cli("queue", "undo", done["action"])["restored"] == 1
    stuck.cli("queue", "retry", row["id"])
    (story,) = stuck.cli("queue", "show", row["id"])["deliveries"]
    kinds = [step["kind"] for step in story["events"]]
    assert kinds[:4] == ["message.deferred", "message.cancelled", "message.restored", "message.retried"]
    until(
        lambda: stuck.cli("queue", "show", row["id"])["deliveries"][0]["tries"] > row["tries"],
        "it was tried again",
    )


def test_counts_are_shown_and_nobody_changes_everything_by_accident(stuck: Daemon) -> None:
    told = stuck.cli("queue", "stats")
    assert told["counts"]["deferred"] == 3
    assert {"domain": "first.test", "state": "deferred", "count": 2} in told["domains"]
    refused = stuck.cli("queue", "cancel", "--yes", status=1)
    assert refused["error"]["code"] == "bad_arguments"
    refused = stuck.cli("queue", "hold", "--organization", "nobody", "--yes", status=1)
    assert refused["error"]["code"] == "not_found"
    text = run_cli("queue", "stats", "--config", stuck.configuration).stdout
    assert "first.test" in text
    text = run_cli("queue", "hold", "--all", "--yes", "--config", stuck.configuration).stdout
    assert text.startswith("3 deliveries; mailagents queue undo act_")
