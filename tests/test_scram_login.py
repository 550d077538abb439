"""SCRAM as the login knows it: stable for unknown names, one salt for an inbox's passwords, throttled."""

import pytest

from server.login import Login, kept_secret, scram_verifier, shared_salt
from server.refusal import Refusal
from server.throttle import NETWORK_FAILURES
from storage import accounts
from tests.test_accounts_changing import ANN, HASH, Appliance, run

PEER = "192.0.2.1"


def add(appliance: Appliance, password: str):
    def unit(connection):
        salt = shared_salt(connection, appliance.mailbox)
        return accounts.add_credential(
            connection,
            organization_id=appliance.organization,
            mailbox_id=appliance.mailbox,
            name=password,
            password_hash=HASH,
            scram_verifier=scram_verifier(password, salt),
            at=2,
        ).id

    return appliance.change(unit)


async def refused(appliance: Appliance, user: str, credential_id: str | None) -> int:
    with pytest.raises(Refusal) as caught:
        await appliance.login.scram(protocol="smtp", user=user, credential_id=credential_id, peer=PEER)
    return caught.value.code


def test_all_passwords_of_an_inbox_share_the_salt(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        made = {await add(appliance, "first"), await add(appliance, "second")}
        keys = await appliance.login.scram_keys(ANN, peer=PEER)
        assert {verifier.id for verifier in keys.verifiers} == made
        for name in made:
            identity = await appliance.login.scram(protocol="smtp", user=ANN, credential_id=name, peer=PEER)
            assert (identity.mailbox_id, identity.id) == (appliance.mailbox, name)

    run(tmp_path, scenario)


def test_an_unknown_name_is_told_what_a_known_one_is(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await add(appliance, "first")
        known = await appliance.login.scram_keys(ANN, peer=PEER)
        stranger, again, other = [
            await appliance.login.scram_keys(name, peer=PEER)
            for name in ("no@ours.example", "no@ours.example", "nor@ours.example")
        ]
        assert stranger.salt == again.salt != other.salt
        assert (stranger.iterations, len(stranger.salt)) == (known.iterations, len(known.salt))
        assert len(stranger.verifiers) == 1
        assert await refused(appliance, "no@ours.example", "") == 535

    run(tmp_path, scenario)


def test_wrong_proofs_are_throttled_and_a_revoked_password_is_none(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        await appliance.change(appliance.revoke)
        assert await refused(appliance, ANN, appliance.credential) == 535
        for _ in range(NETWORK_FAILURES - 1):
            assert await refused(appliance, ANN, None) == 535
        assert await refused(appliance, ANN, None) == 454
        with pytest.raises(Refusal):
            await appliance.login.scram_keys(ANN, peer=PEER)

    run(tmp_path, scenario)


def test_an_unknown_name_is_told_the_same_after_a_restart(tmp_path):
    async def scenario(appliance: Appliance) -> None:
        salts = set()
        for _ in range(2):
            secret = kept_secret(tmp_path / "decoy.secret")
            login = Login(appliance.threads, appliance.clock, decoy_secret=secret)
            salts.add((await login.scram_keys("no@ours.example", peer=PEER)).salt)
        assert len(salts) == 1
        assert (tmp_path / "decoy.secret").stat().st_mode & 0o777 == 0o600

    run(tmp_path, scenario)


def test_a_damaged_secret_is_made_anew(tmp_path):
    (tmp_path / "decoy.secret").write_bytes(b"short")
    made = kept_secret(tmp_path / "decoy.secret")
    assert len(made) == 32
    assert kept_secret(tmp_path / "decoy.secret") == made
