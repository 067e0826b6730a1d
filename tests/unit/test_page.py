"""The monitor's HTTP interface over a fake board: what it says, to whom, and what it never says."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from schemas.errors import SinkRefused, SinkUnavailable
from streams.freshness.web import access, answers, stream
from streams.freshness.web.access import COOKIE, Access
from streams.freshness.web.app import make_app
from streams.freshness.web.board import judged, withheld
from streams.freshness.web.serving import serve
from streams.freshness.web.view import broken, view
from streams.freshness.web.words import duration
from tests.deployment import until
from tests.fakes import board as fake
from tests.fakes.board import SECRET_KEY, FakeBoard, FakeReads

TOKEN = "correct horse battery staple"


@contextlib.contextmanager
def client(
    board: FakeBoard | None = None,
    reads: FakeReads | None = None,
    *,
    host: str = "127.0.0.1",
    token: str = "",
    name: str = "127.0.0.1",
) -> Iterator[TestClient]:
    app = make_app(
        board or FakeBoard(), reads or FakeReads(), token=token, host=host, metrics=lambda: b"up 1\n"
    )
    with TestClient(app, base_url=f"http://{name}", follow_redirects=False) as found:
        yield found


@pytest.fixture
def page() -> Iterator[TestClient]:
    with client() as found:
        yield found


@pytest.fixture
def public() -> Iterator[TestClient]:
    """Bound to every interface, with a token; asked by the address that it listens on."""
    with client(host="0.0.0.0", token=TOKEN, name="10.1.2.3") as found:
        yield found


# What it says


def test_the_overview_says_every_verdict_and_number(page: TestClient) -> None:
    answer = page.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for words in (
        "content",
        "customers",
        "FRESH",
        "1.4 s",
        "30 s",
        "80 ms",
        "87.0 %",
        "0.4×",
        "upwell_shop_3",
    ):
        assert words in answer.text
    assert answer.text.count('class="chart"') == 4
    assert "canary-number" in answer.text
    assert "/collections/canary" not in answer.text


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (fake.stale(), "Connect task 0 FAILED 92 s ago: password authentication failed"),
        (fake.incomplete(), "41.0 % of 12,345 rows"),
        (fake.unknown(), "the source does not answer for 21 s"),
        (fake.live(gap="slot lost: run `upwell connector rebuild`"), "slot lost"),
        (
            fake.live(
                blocked=[{"collection": "content", "slot": "a", "reason": "column gone", "since": None}]
            ),
            "column gone",
        ),
        (fake.live(workers=[]), "no worker has ever run"),
        (fake.live(collections={}), "nothing was evaluated yet"),
    ],
)
def test_what_is_broken_is_said_in_words_first(said: Any, words: str) -> None:
    with client(FakeBoard(said)) as page:
        text = page.get("/").text
    assert words in text
    assert text.index(words.split("`", maxsplit=1)[0]) < text.index("collections-title")


def test_a_healthy_deployment_has_nothing_broken() -> None:
    assert list(broken(fake.live())) == []


@pytest.mark.parametrize("age", [None, 15.1, 3600.0])
def test_an_evaluation_that_is_old_is_unknown_everywhere(age: float | None) -> None:
    with client(FakeBoard(fake.live(age_seconds=age))) as page:
        live = page.get("/api/v1/live").json()
        freshness = page.get("/api/v1/freshness").json()
        shown = page.get("/page/view").json()
        html = page.get("/").text
        assert page.get("/readyz").status_code == 503
        assert page.get("/healthz").status_code == 200
    for found in (live, freshness):
        assert {each["verdict"] for each in found["collections"].values()} == {"UNKNOWN"}
    assert set(shown["states"].values()) == {shown["overall"]} == {"UNKNOWN"}
    assert 'data-state="FRESH"' not in html


def test_the_report_has_the_verdicts_of_now(page: TestClient) -> None:
    found = page.get("/api/v1/freshness").json()
    assert set(found["collections"]) == {"content", "customers"}
    content = found["collections"]["content"]
    assert (content["verdict"], content["staleness_seconds"]) == ("FRESH", 1.4)
    assert content["slo"]["budget_remaining_ratio"] == 0.87
    assert content["worst"][0]["key"] == SECRET_KEY


def test_a_collection_that_nobody_evaluated_is_unknown() -> None:
    found = judged(fake.report(["new"]), fake.live())
    assert found["collections"]["new"]["verdict"] == "UNKNOWN"


def test_ready_once_evaluated(page: TestClient) -> None:
    assert page.get("/readyz").status_code == 200


def test_metrics_are_what_is_mounted(page: TestClient) -> None:
    answer = page.get("/metrics")
    assert (answer.status_code, answer.content) == (200, b"up 1\n")
    assert answer.headers["content-type"].startswith("text/plain")


def test_a_collection_and_its_record(page: TestClient) -> None:
    answer = page.get("/collections/content")
    assert answer.status_code == 200
    assert answer.text.count('class="chart"') == 4
    assert "order-4711" in answer.text
    found = page.get("/collections/content/records", params={"key": "order-4711"})
    assert found.status_code == 200
    assert "lineage 3, offset 42" in found.text
    assert "a lantern for &lt;b&gt;winter&lt;/b&gt; walks" in found.text
    assert "<b>winter" not in found.text


def test_a_key_that_is_unknown_or_none(page: TestClient) -> None:
    assert page.get("/collections/content/records?key=7").status_code == 404
    wrong = page.get("/collections/content/records?key=seven")
    assert wrong.status_code == 400
    assert "key column id is bigint" in wrong.text
    assert page.get("/collections/content/records?key=" + "x" * 5000).status_code == 400


@pytest.mark.parametrize("chart", ["staleness", "verdicts", "stages", "budget"])
def test_charts_are_svg_without_styles_that_the_policy_forbids(page: TestClient, chart: str) -> None:
    answer = page.get(f"/charts/content/{chart}.svg?hours=6")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/svg+xml"
    assert answer.text.startswith("<svg")
    assert " style=" not in answer.text


# The sink is away


def test_without_the_sink_what_is_live_is_shown() -> None:
    reads = FakeReads()
    reads.error = SinkUnavailable("sink database: connection to server at db.internal failed")
    with client(reads=reads) as page:
        html = page.get("/").text
        answer = page.get("/api/v1/freshness")
        record = page.get("/collections/content/records?key=1")
    assert "The sink does not answer" in html
    assert 'data-state="FRESH"' in html
    assert "1.4 s" in html
    assert answer.status_code == 503
    assert answer.json()["collections"]["content"]["verdict"] == "FRESH"
    assert record.status_code == 503
    for text in (html, answer.text, record.text):
        assert "db.internal" not in text


def test_a_sink_that_refuses_is_no_key_that_is_wrong() -> None:
    reads = FakeReads()
    reads.error = SinkRefused("sink database refuses the login of user bob")
    with client(reads=reads) as page:
        found = page.get("/collections/content/records?key=1")
    assert found.status_code == 503
    assert "bob" not in found.text


def test_a_sink_that_hangs_holds_up_no_page() -> None:
    reads = FakeReads()
    reads.answers.clear()
    with client(reads=reads) as page:
        assert page.get("/").status_code == 200
        assert page.get("/api/v1/live").status_code == 200
        assert reads.asked.count("report") == 1
        reads.answers.set()
        until(lambda: "80 ms" in page.get("/").text, 5, "the report, once the sink answers")


def test_ten_browsers_cost_as_one() -> None:
    reads = FakeReads()
    with client(reads=reads) as page:
        for _ in range(10):
            page.get("/")
            page.get("/collections/content")
    assert reads.asked.count("report") == 1
    assert reads.asked.count("history") == 2


async def test_an_answer_is_read_anew_once_it_is_old() -> None:
    now = [0.0]
    read: list[float] = []
    kept = answers.Answers(clock=lambda: now[0])
    for at in (0.0, 3.9, 4.0, 8.1):
        now[0] = at
        await kept.ask("report", lambda: read.append(now[0]), 5.0)
    assert read == [0.0, 4.0, 8.1]
    await kept.ask("two", lambda: 2, 5.0)
    assert kept.last("two") == 2
    now[0] += answers.USABLE_SECONDS + 1
    assert kept.last("two") is None


async def test_who_asks_does_not_wait_for_a_sink_that_hangs() -> None:
    go = threading.Event()
    answer = await answers.Answers().ask("report", lambda: go.wait(10), 0.01)
    assert answer.asking is not None
    go.set()
    await answer.asking
    assert answer.value is True


async def test_questions_are_forgotten() -> None:
    kept = answers.Answers()
    for number in range(answers.MOST + 50):
        await kept.ask(number, lambda: 1, 5.0)
    assert len(kept._kept) == answers.MOST


# Who may see what


@pytest.mark.parametrize(
    "path", ["/", "/collections/content", "/api/v1/freshness", "/api/v1/live", "/page/view"]
)
def test_everybody_sees_verdicts_and_nobody_keys_without_the_token(public: TestClient, path: str) -> None:
    answer = public.get(path)
    assert answer.status_code == 200
    assert "FRESH" in answer.text
    for secret in ("4711", "lantern"):
        assert secret not in answer.text.replace('"lsn":4711', "")
    assert public.get(path, headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_records_need_the_token(public: TestClient) -> None:
    path = "/collections/content/records?key=1"
    assert public.get(path).status_code == 401
    assert public.get(path, headers={"authorization": "Bearer wrong"}).status_code == 401
    assert public.get(path, headers={"authorization": f"Basic {TOKEN}"}).status_code == 401
    public.cookies.set(COOKIE, "wrong")
    assert public.get(path).status_code == 401
    public.cookies.clear()
    shown = public.get(path, headers={"authorization": f"Bearer {TOKEN}"})
    assert shown.status_code == 200
    assert "lantern" in shown.text
    assert "4711" in public.get("/api/v1/freshness", headers={"authorization": f"Bearer {TOKEN}"}).text
    to_form = public.get(path, headers={"accept": "text/html"})
    assert to_form.status_code == 303
    assert to_form.headers["location"] == "/login?to=%2Fcollections%2Fcontent%2Frecords%3Fkey%3D1"


def test_no_token_set_is_nobody_not_everybody() -> None:
    with client(host="0.0.0.0", name="10.1.2.3") as page:
        path = "/collections/content/records?key=1"
        for headers in (
            {},
            {"authorization": "Bearer "},
            {"cookie": f"{COOKIE}={Access('x', '').session()}"},
        ):
            answer = page.get(path, headers=headers)
            assert answer.status_code == 403
            assert "UPWELL_MONITOR_TOKEN" in answer.text
        assert page.post("/login", data={"token": ""}).status_code == 403


def test_the_login_sets_a_cookie_that_is_not_the_token(public: TestClient) -> None:
    form = public.get("/login?to=/collections/content")
    assert 'type="password"' in form.text
    assert public.post("/login", data={"token": "wrong", "to": "/"}).status_code == 403
    assert COOKIE not in public.cookies
    done = public.post("/login", data={"token": TOKEN, "to": "/collections/content"})
    assert (done.status_code, done.headers["location"]) == (303, "/collections/content")
    cookie = done.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "horse" not in cookie
    assert "lantern" in public.get("/collections/content/records?key=1").text


@pytest.mark.parametrize(
    "to", ["https://evil.example/", "//evil.example", "/\\evil.example", "x", "/\t/evil.example"]
)
def test_a_login_leads_nowhere_else(public: TestClient, to: str) -> None:
    assert public.post("/login", data={"token": TOKEN, "to": to}).headers["location"] == "/"


def test_a_login_from_another_site_is_refused(public: TestClient) -> None:
    answer = public.post("/login", data={"token": TOKEN}, headers={"origin": "http://evil.example"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert public.post("/login", content=b"token=" + b"x" * 10_000).status_code == 413


@pytest.mark.parametrize("header", access.FORWARDED)
def test_behind_a_proxy_loopback_is_not_this_machine(page: TestClient, header: str) -> None:
    assert page.get("/collections/content/records?key=1", headers={header: "203.0.113.9"}).status_code == 403


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8095", "127.0.0.1.evil.example", "", "[::1", "localhost:x", "192.0.2.1"],
)
def test_another_machines_name_is_refused(page: TestClient, host: str) -> None:
    answer = page.get("/", headers={"host": host})
    assert answer.status_code == 421
    assert "FRESH" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8095", "127.0.0.1:1", "[::1]:8095", "localhost."])
def test_our_own_names_are_answered(page: TestClient, host: str) -> None:
    assert page.get("/healthz", headers={"host": host}).status_code == 200


def test_the_machines_name_is_ours_and_an_address_only_where_it_arrived() -> None:
    ours = Access("0.0.0.0", "", frozenset({"shop.internal"}))
    assert ours.answers_to("shop.internal:8095", "10.1.2.3")
    assert ours.answers_to("10.1.2.3:8095", "10.1.2.3")
    assert not ours.answers_to("10.1.2.4:8095", "10.1.2.3")
    assert not ours.answers_to("evil.example", "evil.example")


# What it never says


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/collections/nothing", 404),
        ("GET", "/collections/nothing/records?key=1", 404),
        ("GET", "/collections/canary", 404),
        ("GET", "/collections/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/collections/%3Cscript%3E", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/..%2fapp.py", 404),
        ("GET", "/static/%2e%2e/app.py", 404),
        ("GET", "/charts/content/nothing.svg", 404),
        ("GET", "/charts/content/staleness.svg?hours=5", 404),
        ("GET", "/charts/content/staleness.svg?hours=x", 400),
        ("GET", "/collections/content?hours=100000", 404),
        ("GET", "/docs", 404),
        ("GET", "/openapi.json", 404),
        ("POST", "/", 405),
        ("PUT", "/api/v1/freshness", 405),
        ("DELETE", "/collections/content", 405),
        ("OPTIONS", "/api/v1/live", 405),
    ],
)
def test_what_is_not_there_is_one_clear_line(page: TestClient, method: str, path: str, status: int) -> None:
    answer = page.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.text.count("\n") == 1
    assert len(answer.text) > 10
    assert "<" not in answer.text


def test_a_bug_is_one_line_without_a_traceback() -> None:
    board = FakeBoard()
    with client(board) as page:
        board.said = {
            "collections": {"content": {"verdict": "postgresql://u:hunter2@h/db"}},
            "age_seconds": 0,
        }
        answer = page.get("/")
    assert answer.status_code == 500
    assert answer.text == "the page failed; see the monitor's log\n"
    assert answer.headers["x-content-type-options"] == "nosniff"


PATHS = (
    "/",
    "/collections/content",
    "/collections/content/records?key=1",
    "/api/v1/live",
    "/api/v1/freshness",
    "/api/v1/events",
    "/page/events",
    "/page/view",
    "/healthz",
    "/readyz",
    "/metrics",
    "/login",
    "/static/page.js",
    "/static/page.css",
    "/nothing",
)


@pytest.mark.parametrize("path", PATHS)
def test_head_is_answered_with_strict_headers(page: TestClient, path: str) -> None:
    answer = page.head(path)
    assert answer.status_code == (404 if path == "/nothing" else 200)
    assert answer.content == b""
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_no_page_has_inline_code_or_another_host(page: TestClient) -> None:
    for path in ("/", "/collections/content", "/collections/content/records?key=1", "/login"):
        html = page.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=|javascript:|<style", html)
        assert "://" not in html


def test_withheld_keeps_the_shape() -> None:
    found = withheld({"worst": [{"key": "[1]", "seconds": 2.0}], "text": "x", "a": {"keys": ["[1]"]}})
    assert found == {"worst": [{"key": None, "seconds": 2.0}], "text": None, "a": {"keys": None}}


# Live


def test_the_stream_says_what_changes_and_beats_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "EVERY_SECONDS", 0.01)
    board = FakeBoard()
    app = make_app(board, FakeReads(), token="", host="127.0.0.1")
    serving = serve(app, "127.0.0.1", 0)
    try:
        with requests_stream(serving.url + "api/v1/events") as lines:
            until(lambda: "FRESH" in next(lines), 5, "the first")
            until(lambda: next(lines) == "event: beat", 5, "a beat while nothing changes")
            board.said = fake.stale()
            until(lambda: "STALE" in next(lines), 5, "the change")
    finally:
        serving.stop()
    assert not serving.thread.is_alive()


@contextlib.contextmanager
def requests_stream(url: str) -> Iterator[Iterator[str]]:
    import requests

    with requests.get(url, stream=True, timeout=5) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.iter_lines(chunk_size=1, decode_unicode=True)


def test_streams_are_bounded_and_end_with_their_client(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setattr(stream, "EVERY_SECONDS", 0.01)
    monkeypatch.setattr(stream.Streams.__init__, "__defaults__", (1,))
    serving = serve(make_app(FakeBoard(), FakeReads(), token="", host="127.0.0.1"), "127.0.0.1", 0)
    url = serving.url + "page/events"
    try:
        with requests_stream(url) as lines:
            next(lines)
            refused = requests.get(url, timeout=5)
            assert refused.status_code == 503
            assert "live views" in refused.text

        def again() -> bool:
            with requests.get(url, stream=True, timeout=5) as answer:
                return answer.status_code == 200

        until(again, 5, "a place for the next")
    finally:
        serving.stop()


def test_a_stop_ends_what_is_open() -> None:
    serving = serve(make_app(FakeBoard(), FakeReads(), token="", host="127.0.0.1"), "127.0.0.1", 0)
    with requests_stream(serving.url + "page/events") as lines:
        next(lines)
        serving.stop()
        assert not serving.thread.is_alive()
        assert list(lines) is not None, "a stream that was cut off raises here"


# Words


def test_words_of_numbers() -> None:
    assert [duration(value) for value in (None, 0.44, 35.2, 200, 7500, 300_000)] == [
        "–",
        "0.4 s",
        "35 s",
        "3 min 20 s",
        "2 h 5 min",
        "3 d 11 h",
    ]


def test_what_is_not_known_is_a_dash_and_no_zero() -> None:
    shown = view(fake.live(slot=None, connector=None, canary=None), None)
    for place in ("slot-behind", "connector-since", "canary-delay", "content.p50", "content.budget"):
        assert shown["texts"][place] == "–"
