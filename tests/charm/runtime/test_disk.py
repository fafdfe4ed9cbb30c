"""Tables that are written: text is never a formula, and numbers stay numbers."""

import csv
import io

import pytest

from charm.runtime.disk import encode_csv


@pytest.mark.parametrize(
    "text", ["=1+1", "+a", "-a", "@a", "\t=1", "\r=1", "\n=1", " =1", "\uff1d1", "-1+1", "-1;2", "=-1", "--1"]
)
def test_text_is_no_formula(text: str) -> None:
    ((_, cell),) = list(csv.reader(io.StringIO(encode_csv(["n", "text"], [(1, text)]).decode(), newline="")))[1:]
    assert cell == f"./{text}"


@pytest.mark.parametrize("value", [-1, -0.25, -1e-7, "-0.250000", "-1.5e-07", "+2", "12"])
def test_numbers_stay_numbers(value: object) -> None:
    assert encode_csv(["a"], [[value]]).decode() == f"a\n{value}\n"


def test_other_text_stays_as_it_is() -> None:
    assert encode_csv(["a"], [["a=b"], ["été"], [None], ["1-2"]]).decode() == 'a\na=b\nété\n""\n1-2\n'
