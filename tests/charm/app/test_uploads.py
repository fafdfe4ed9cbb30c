"""Every part of a form gives one row, in order, or the request is refused with a line that says which part."""

from collections.abc import Iterator

import httpx
import pytest

from charm.scorer import CharmScorer
from tests.charm.app.test_server import JPEGS, connect
from tests.serving import run_server

B = b"boundary-of-the-test"


@pytest.fixture(scope="module")
def client(scorer: CharmScorer) -> Iterator[httpx.Client]:
    with run_server(scorer) as address, connect(address) as opened:
        yield opened


def part(disposition: bytes | None, data: bytes = b"text", *more: bytes) -> bytes:
    lines = [] if disposition is None else [b"Content-Disposition: " + disposition]
    return b"\r\n".join([b"--" + B, *lines, *more, b"", data, b""])


def file(name: bytes = b'filename="a.jpg"', data: bytes = b"text", *more: bytes) -> bytes:
    return part(b'form-data; name="image"; ' + name, data, *more)


def post(
    client: httpx.Client, body: bytes, content_type: bytes = b"multipart/form-data; boundary=" + B
) -> httpx.Response:
    return client.post("/score", content=body, headers={"Content-Type": content_type.decode("latin-1")})


END = b"--" + B + b"--\r\n"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (b'filename="a.jpg"', "a.jpg"),
        (b"filename=a.jpg", "a.jpg"),
        (b"filename*=UTF-8''na%C3%AFve%20%E2%82%AC.jpg", "naïve €.jpg"),
        (b"filename*=iso-8859-1'en'na%EFve.jpg", "naïve.jpg"),
        (b"filename*=plain.jpg", "plain.jpg"),
        (b"filename*=idna''%ff.jpg", "ÿ.jpg"),
        (b"filename*=unicode_escape''%5Cud800.jpg", "\ud800.jpg"),
        (b"filename*=hex''00", "00"),
        (b"filename*0*=UTF-8''a; filename*1*=%20b.jpg", "a b.jpg"),
        (b"filename=plain.jpg; filename*=UTF-8''other.jpg", "plain.jpg"),
        ('filename="été写.jpg"'.encode(), "été写.jpg"),
        (b'filename="\xe9.jpg"', "é.jpg"),
        (b'filename="a;b\\"c.jpg"', 'a;b"c.jpg'),
        (b'filename="photo\xe2\x80\xaegpj.exe"', "photo\u202egpj.exe"),
        (b'filename=""', ""),
        (b"FileName=a.jpg", "a.jpg"),
    ],
)
def test_names_of_files(given: bytes, name: str, client: httpx.Client) -> None:
    reply = post(client, file(given) + END)
    (row,) = reply.json()["scores"]
    assert (row["name"], row["error"]["reason"]) == (name, "format")
    assert reply.content.isascii()  # whatever a name holds, a terminal that shows the reply is not turned about


def test_a_row_for_each_part_in_order(client: httpx.Client) -> None:
    """Of one name, empty, and a good one; some bytes at a time."""
    body = b"\r\n" + file(data=JPEGS[0]) + file(data=b"") + file() + file(b"filename*=UTF-8''b", JPEGS[1]) + END

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 37] for start in range(0, len(body), 37))

    for content in (body, pieces()):
        reply = client.post(
            "/score", content=content, headers={"Content-Type": f"multipart/form-data; boundary={B.decode()}"}
        )
        rows = reply.json()["scores"]
        assert [row["name"] for row in rows] == ["a.jpg", "a.jpg", "a.jpg", "b"]
        assert [row.get("error", {}).get("reason") for row in rows] == [None, "empty", "format", None]


WRONG = {
    "text": (part(b'form-data; name="image"'), "part 2 of the form is text and no file: with curl, -F image=@FILE"),
    "field": (part(b'form-data; name="photo"; filename="a.jpg"'), "part 2 of the form is of the field 'photo': expect"),
    "text of a field": (
        part(b'form-data; name="draws"'),
        "part 2 of the form is of the field 'draws': expected 'image'",
    ),
    "case of the field": (part(b'form-data; name="Image"; filename="a"'), "part 2 of the form is of the field 'Image'"),
    "no field": (part(b'form-data; filename="a.jpg"'), "part 2 of the form has not exactly one Content-Disposition"),
    "no disposition": (
        part(None, b"x", b"Content-Type: image/jpeg"),
        "part 2 of the form has not exactly one Content-",
    ),
    "no headers": (part(None), "part 2 of the form has not exactly one Content-Disposition"),
    "attachment": (part(b'attachment; name="image"; filename="a"'), "part 2 of the form has not exactly one Content-"),
    "two": (
        file(b"filename=a", b"", b"Content-Disposition: form-data; name=image"),
        "part 2 of the form has not exact",
    ),
    "long header": (
        file(b"filename=" + b"x" * 5000),
        "part 2 of the form cannot be read: Maximum header size exceeded",
    ),
    "many headers": (file(b"filename=a", b"", *[b"a: b"] * 99), "part 2 of the form cannot be read: Maximum header"),
    "bad header": (file(b"filename=a", b"", b"b c"), "part 2 of the form cannot be read: "),
}


@pytest.mark.parametrize(("wrong", "says"), WRONG.values(), ids=WRONG)
def test_a_part_that_is_no_file_is_named(wrong: bytes, says: str, client: httpx.Client) -> None:
    for body in (file() + wrong + END, file() + wrong + file() + END):
        reply = post(client, body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "malformed")
        message = reply.json()["error"]["message"]
        assert message.startswith(says)
        assert "\n" not in message


@pytest.mark.parametrize(
    ("body", "content_type", "says"),
    [
        (END, b"multipart/form-data; boundary=" + B, "the form has no parts: expected files in the field 'image'"),
        (file()[:-2], b"multipart/form-data; boundary=" + B, "the form ends before its closing boundary, after 1 part"),
        (
            file() + file(),
            b"multipart/form-data; boundary=" + B,
            "the form ends before its closing boundary, after 2 p",
        ),
        (
            file() + END[:-4],
            b"multipart/form-data; boundary=" + B,
            "the form ends before its closing boundary, after 1",
        ),
        (b"", b"multipart/form-data; boundary=" + B, "the form ends before its closing boundary, after 0 parts"),
        (file() + END + file() + END, b"multipart/form-data; boundary=" + B, "the form goes on after its end, which"),
        (
            file() + END + b"x",
            b"multipart/form-data; boundary=" + B,
            "the form goes on after its end, which came after 1",
        ),
        (file() + END, b"multipart/form-data; boundary=another", "part 1 of the form cannot be read: "),
        (file() + END, b"multipart/form-data", "the form has no boundary in its Content-Type"),
        (file() + END, b"multipart/form-data; boundary=", "the form has no boundary in its Content-Type"),
        (
            file() + END,
            b"multipart/form-data; boundary=" + b"x" * 999,
            "part 1 of the form cannot be read: Boundary le",
        ),
    ],
)
def test_forms_that_are_none(body: bytes, content_type: bytes, says: str, client: httpx.Client) -> None:
    for chunked in (False, True):
        content = iter([body[:50], body[50:]]) if chunked else body
        reply = client.post("/score", content=content, headers={"Content-Type": content_type.decode()})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "malformed")
        assert reply.json()["error"]["message"].startswith(says)


def test_line_ends_after_the_form_are_no_part(client: httpx.Client) -> None:
    assert post(client, file(data=JPEGS[0]) + END + b"\r\n\r\n").status_code == 200
    assert post(client, file(data=JPEGS[0]) + END[:-2]).status_code == 200


def test_one_part_too_many(client: httpx.Client) -> None:
    assert len(post(client, file() * 64 + END).json()["scores"]) == 64
    reply = post(client, file() * 65 + END)
    assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_many_files")
