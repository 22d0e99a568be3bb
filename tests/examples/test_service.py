"""The web service of the examples, asked by many at once."""

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.exports import files_in

import clip_randlora as cr

testclient = pytest.importorskip("fastapi.testclient")


@pytest.fixture
def client(tiny_run, monkeypatch):
    monkeypatch.setenv("RUN", str(tiny_run))
    path = Path(__file__).parents[2] / "examples" / "service.py"
    spec = importlib.util.spec_from_file_location("service", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with testclient.TestClient(module.app) as client:
        yield client
    module.classifier.close()


def test_200_requests_at_once_get_the_serial_answers(client, tiny_run, drawings):
    paths = files_in(drawings / "test")
    classifier = cr.Classifier.load(tiny_run)
    expected = [classifier.predict([path])[0] for path in paths]
    classifier.close()
    asked = [number % len(paths) for number in range(200)]

    def ask(number: int):
        content = Path(paths[number]).read_bytes()
        return client.post("/predict", files={"image": content})

    with ThreadPoolExecutor(40) as threads:
        answers = list(threads.map(ask, asked))
    assert {answer.status_code for answer in answers} == {200}
    for number, answer in zip(asked, answers, strict=True):
        for which, probabilities in answer.json().items():
            assert probabilities == pytest.approx(expected[number][which], abs=1e-5)
    assert client.get("/classes").json() == list(cr.read_task(tiny_run).classes)


def test_what_is_no_image_is_said_in_one_line(client):
    answer = client.post("/predict", files={"image": b"no image"})
    assert answer.status_code == 422 and "\n" not in answer.json()["detail"]
    assert client.post("/predict").status_code == 422
    large = client.post("/predict", files={"image": b"0" * 20_000_001})
    assert (large.status_code, large.json()["detail"]) == (413, "the image is larger than 20 MB")
