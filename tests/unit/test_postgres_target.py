"""What a postgresql:// URL may say, and that no word of a password is ever repeated."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from holdfast.engines import engine_for, without_password
from holdfast.engines.postgres.engine import Postgres, PostgresEngine
from holdfast.errors import HoldfastError, Misuse


def hosts(url: str) -> list[bytes]:
    return Postgres(url).attempts()


def test_libpqs_options_pass_and_ours_are_taken_out() -> None:
    (one,) = hosts("postgresql://u:p%40w@h:5433/db?schema=mine&sslmode=require&options=-csearch_path%3Dx")
    for part in (b"host=h", b"port=5433", b"dbname=db", b"user=u", b"sslmode=require", b"-csearch_path=x"):
        assert part in one
    assert b"schema" not in one
    assert b"application_name=holdfast" in one
    assert Postgres("postgresql://h/db?schema=mine").schema == "mine"


def test_each_host_is_an_attempt_of_its_own() -> None:
    first, second, third = hosts("postgresql://a,b:5433,c/db?target_session_attrs=read-write")
    assert b"host=a " in first
    assert b"host=b " in second
    assert b"port=5433" in second
    assert b"host=c" in third
    assert all(b"target_session_attrs=read-write" in one for one in (first, second, third))


def test_a_listen_url_is_another_way_to_the_same() -> None:
    target = Postgres(
        "postgresql://pooler:6432/db?listen_url=postgresql%3A%2F%2Fu%3Ap@server%3A5432%2Fdb%3Fsslmode%3Ddisable"
    )
    (listener,) = target.listener.attempts()
    assert b"host=server" in listener
    assert b"sslmode=disable" in listener
    assert b"host=pooler" in target.attempts()[0]


def test_engines_of_one_place_are_known_as_that() -> None:
    def identity(url: str, namespace: str = "") -> str:
        return engine_for(url, namespace).identity

    assert identity("postgresql://u:one@h/db") == identity("postgres://v:two@h:5432/db")
    apart = {
        identity("postgresql://h/db"),
        identity("postgresql://h/db?schema=other"),
        identity("postgresql://h/db", "space"),
        identity("postgresql://h/other"),
        identity("postgresql://h:5433/db"),
    }
    assert len(apart) == 5
    assert (
        identity("postgresql://localhost/db") != "postgres:localhost:5432/db#holdfast#"
    )  # another one on each machine


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:sec/ret@h/db",
        "postgresql://u:sec@ret@h/db",
        "postgresql://u:sec#ret@h:x/db",
        "postgresql://u:secret@h:port/db",
        "postgresql://u:secret@[h/db",
        "postgresql://u:secret@h/db?nonsense=1",
        "postgresql://u:sec%ret@h/db",
        "postgresql://h/db?password=secret&schema=bad-name",
        "postgresql://h/db?password=secret&ends_with_connection=perhaps",
        "postgresql://h/db?listen_url=postgresql%3A%2F%2Fu%3Asecret@h%3Aport%2Fdb",
        "postgresql://h/db?listen_url=nonsense%3Asecret",
        "postgresql://h/db?password=sec%zz",
    ],
)
def test_a_url_that_is_none_says_so_without_its_secrets(url: str) -> None:
    with pytest.raises(HoldfastError) as told:
        engine_for(url).blocking_link().call(engine_for(url).ping(), 0.3)
    assert isinstance(told.value, Misuse), told.value
    for secret in ("sec", "ret@"):
        assert secret not in str(told.value)


def test_a_url_is_taken_apart_as_libpq_does() -> None:
    place = Postgres("postgresql://u:sec?schema=ret@h/a?schema=mine&application_name=a%20b%2Bc&password=d+e")
    assert (place.schema, place.where) == ("mine", "h:5432")
    assert conninfo_to_dict(place.attempts()[0].decode()) == {
        "user": "u", "password": "d+e", "host": "h", "dbname": "a", "application_name": "a b+c",
        "fallback_application_name": "holdfast",
    }  # fmt: skip


def test_an_option_that_libpq_does_not_know_is_named() -> None:
    with pytest.raises(Misuse, match='"shema"'):
        Postgres("postgresql://u@h/db?shema=mine")


def test_a_password_within_a_listen_url_is_hidden_from_people_too() -> None:
    for listen in ("postgresql%3A%2F%2Fu%3Asecret%40i%2Fdb", "postgresql://u:secret@i/db", "password%3Dsecret"):
        shown = without_password(f"postgresql://u@h/db?listen_url={listen}&schema=mine")
        assert "secret" not in shown
        assert shown.startswith("postgresql://u")


def test_no_secret_is_shown_by_what_is_printed() -> None:
    engine = PostgresEngine("postgresql://u:secret@h/db?listen_url=postgresql%3A%2F%2Fu%3Asecret@i%2Fdb")
    for text in (repr(engine), engine.identity, str(engine.capabilities), repr(Postgres("postgresql://u:secret@h/db"))):
        assert "secret" not in text


@pytest.mark.parametrize("schema", ["", "a-b", 'a"b', "pg_mine", "x" * 64, "1st"])
def test_a_schema_is_a_plain_name(schema: str) -> None:
    with pytest.raises(Misuse, match="plain name"):
        Postgres("postgresql://h/db", schema=schema)
