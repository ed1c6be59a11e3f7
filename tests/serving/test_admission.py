import pytest

from valuembed.errors import InputError, RequestError
from valuembed.serving.admission import Admission, Limits


def refused(function, *arguments):
    with pytest.raises(RequestError) as caught:
        function(*arguments)
    return caught.value


@pytest.mark.parametrize("name", ["max_texts", "max_requests", "body_seconds", "stuck_seconds"])
def test_limits_are_above_nothing(name):
    with pytest.raises(InputError, match=f"^{name}=0 has to be above 0$"):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_texts": 11, "max_waiting_texts": 10}, "max_texts=11 is above max_waiting_texts=10: such a request"),
        ({"max_body_bytes": 2, "max_waiting_bytes": 1}, "max_body_bytes=2 is above max_waiting_bytes=1: such a"),
    ],
)
def test_a_single_request_has_to_fit(given, message):
    with pytest.raises(InputError, match=f"^{message}"):
        Limits(**given)


def test_requests_are_counted():
    admission = Admission(Limits(max_requests=2))
    tickets = [admission.admit(), admission.admit()]
    error = refused(admission.admit)
    assert (error.status, error.code, error.headers) == (429, "server_busy", {"Retry-After": "1"})
    assert str(error) == "the server is full: 2 requests are being served; try again in 1 s"
    tickets.pop().release()
    assert admission.requests == 1
    admission.admit()


def test_texts_and_bytes_are_counted_over_all_requests():
    admission = Admission(Limits(max_texts=5, max_waiting_texts=10, max_body_bytes=50, max_waiting_bytes=100))
    first, second = admission.admit(), admission.admit()
    first.add_bytes(30)
    first.add_bytes(20)
    assert str(refused(first.add_bytes, 1)).startswith("the request's body is larger than 50 bytes; send fewer texts")
    second.add_bytes(50)
    assert str(refused(admission.admit().add_bytes, 1)).startswith(
        "the server is full: requests of 100 bytes are being"
    )
    first.add_texts(8)
    assert str(refused(second.add_texts, 3)).startswith("the server is full: 8 texts are being served")
    second.add_texts(2)
    assert (admission.requests, admission.texts, admission.bytes) == (3, 10, 100)
    first.release()
    assert (admission.requests, admission.texts, admission.bytes) == (2, 2, 50)


@pytest.mark.parametrize(("clear", "told"), [(0.0, "1"), (7.4, "7"), (1e9, "60")])
def test_clients_are_told_when_to_come_back(clear, told):
    assert Admission(Limits(), lambda: clear).full("x").headers == {"Retry-After": told}
