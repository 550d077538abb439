"""What a retry with the same key gets."""

import pytest

from storage import idempotency
from storage.db import Database
from storage.idempotency import Different, Done, Fresh, InProgress

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND


def begin(database: Database, *, organization="org_a", key="k", request=b"r", at=NOW):
    return database.write(
        lambda c: idempotency.begin(c, organization_id=organization, key=key, request_hash=request, at=at)
    )


def finish(database: Database, message_id="msg_1", organization="org_a", key="k") -> None:
    database.write(
        lambda c: idempotency.finish(c, organization_id=organization, key=key, message_id=message_id)
    )


def release(database: Database, organization="org_a", key="k") -> None:
    database.write(lambda c: idempotency.release(c, organization_id=organization, key=key))


def test_the_first_use_of_a_key_is_fresh_and_the_next_waits(database: Database) -> None:
    assert begin(database) == Fresh()
    assert begin(database, at=NOW + SECOND) == InProgress()


def test_a_retry_after_the_end_gets_the_same_message(database: Database) -> None:
    begin(database)
    finish(database)
    assert begin(database, at=NOW + 3600 * SECOND) == Done("msg_1")


def test_the_first_message_of_a_key_stays(database: Database) -> None:
    begin(database)
    finish(database, "msg_1")
    finish(database, "msg_2")
    assert begin(database) == Done("msg_1")


@pytest.mark.parametrize("finished", [False, True])
def test_another_request_under_the_same_key_is_told_so(database: Database, finished: bool) -> None:
    begin(database)
    if finished:
        finish(database)
    assert begin(database, request=b"other") == Different()


def test_keys_belong_to_their_organization(database: Database) -> None:
    begin(database)
    finish(database)
    assert begin(database, organization="org_b", request=b"other") == Fresh()
    assert begin(database, key="k2") == Fresh()


def test_a_refused_request_gives_its_key_back(database: Database) -> None:
    begin(database)
    release(database)
    assert begin(database, request=b"corrected") == Fresh()


def test_a_finished_key_is_not_given_back(database: Database) -> None:
    begin(database)
    finish(database)
    release(database)
    assert begin(database) == Done("msg_1")


def test_a_request_whose_process_died_is_taken_over(database: Database) -> None:
    begin(database)
    late = NOW + idempotency.IN_PROGRESS_SECONDS * SECOND
    assert begin(database, at=late - 1) == InProgress()
    assert begin(database, at=late) == Fresh()
    assert begin(database, at=late + 1) == InProgress()


def test_a_key_is_kept_for_seven_days(database: Database) -> None:
    begin(database)
    finish(database)
    week = NOW + 7 * 24 * 3600 * SECOND
    assert begin(database, at=week - 1) == Done("msg_1")
    assert begin(database, at=week) == Fresh()


def test_old_keys_are_forgotten_and_young_ones_kept(database: Database) -> None:
    begin(database, key="old")
    begin(database, key="young", at=NOW + SECOND)
    at = NOW + idempotency.KEPT_SECONDS * SECOND
    assert database.write(lambda c: idempotency.forget(c, at=at)) == 1
    assert begin(database, key="young", request=b"other", at=NOW + 2 * SECOND) == Different()
