"""The real app, started as a user starts it, driven by a real browser and by its client library."""

import io
import json
import re
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from gradio_client import handle_file
from gradio_client.exceptions import AppError
from helpers.app import (
    CLIPART,
    App,
    drawing,
    needs_chromium,
    open_filled,
    start_training,
    train,
    upload,
    wait_for_new_answers,
    zip_of,
)
from helpers.cases import LARGE
from PIL import Image
from safetensors.torch import load

CLIENTS = 8 if LARGE else 3


@pytest.mark.alone
@needs_chromium
def test_stop_leaves_a_usable_model_within_five_seconds(app, browser):
    page = open_filled(browser, app, {"bird": 20, "fruit": 20})
    start_training(page, "Thorough")
    page.get_by_text(re.compile(r"step [2-9] of")).wait_for()
    stopped = time.monotonic()
    page.get_by_role("button", name="Stop", exact=True).click()
    upload(page, page.get_by_role("button", name="Choose an image"), [drawing("fruit", 3)])
    wait_for_new_answers(page)
    elapsed = time.monotonic() - stopped
    print(f"stopped, and an answer, after {elapsed:.1f} s")
    assert elapsed < 5


@pytest.mark.slow
def test_a_server_in_the_background_of_a_script_ends_when_told(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as shells start what has a "&"
    try:
        app = App(tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    app.close()


@pytest.mark.slow
def test_the_whole_way_by_client(app, tmp_path):
    client = app.client()
    archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=10)
    summary = client.predict(handle_file(str(archive)), api_name="/load_archive")
    assert summary["classes"] == ["bird", "car"]
    assert summary["counts"]["bird"] == {"train": 10, "test": 0}
    assert summary["skipped"] == []
    with pytest.raises(AppError, match="/etc: no bundled set; there are clipart, digits"):
        client.predict("/etc", api_name="/load_sample")
    image = handle_file(str(drawing("vehicle", 2)))
    with pytest.raises(AppError, match="There is no tuned model yet"):
        client.predict(image, 1.0, api_name="/predict")
    with pytest.raises(AppError, match="Method: 'magic' is unknown; choose randlora"):
        train(client, method="magic")

    *progress, metrics = train(client)
    assert {"waiting", "preparing", "training"} & {row["state"] for row in progress}
    steps = [row["step"] for row in progress if "step" in row]
    assert steps == sorted(steps) and steps[-1] <= 25
    assert metrics["method"] == "randlora"
    assert metrics["images"] == {"train": 14, "test": 6}
    assert client.predict(api_name="/evaluate") == metrics

    answer = client.predict(image, 1.0, api_name="/predict")
    assert set(answer) == {"zero_shot", "tuned"}
    assert sum(answer["tuned"].values()) == pytest.approx(1, abs=1e-5)
    assert client.predict(image, 0.0, api_name="/predict")["tuned"] == answer["zero_shot"]
    with pytest.raises(AppError, match="between 0 and 1"):
        client.predict(image, 1.5, api_name="/predict")

    adapter = client.predict("adapter", api_name="/export")
    run = client.predict("run", api_name="/export")
    assert Path(adapter).suffix == ".safetensors"
    with zipfile.ZipFile(run) as zipped:
        assert json.load(io.TextIOWrapper(zipped.open("run/metrics.json"))) == metrics
        temperature = json.loads(zipped.read("run/confidence.json"))["zero_shot"]
    with pytest.raises(AppError, match="Format magic: choose adapter, run, open_clip"):
        client.predict("magic", api_name="/export")

    merged = client.predict("open_clip", api_name="/export")
    with zipfile.ZipFile(merged) as zipped:
        assert "open_clip/open_clip_model.safetensors" in zipped.namelist()
    with pytest.raises(AppError, match="Precision fp16: open_clip is written in fp32"):
        client.predict("open_clip", 1.0, "fp16", api_name="/export")
    with pytest.raises(AppError, match="its strength chosen where it is loaded"):
        client.predict("adapter", 0.5, api_name="/export")

    import clip_randlora as cr

    base = cr.load_model("lite0", device="cpu").net.state_dict()
    at_zero = client.predict("open_clip", 0.0, api_name="/export")
    assert Path(at_zero).name.startswith("open_clip-strength0-fp32-")
    with zipfile.ZipFile(at_zero) as zipped:
        weights = load(zipped.read("open_clip/open_clip_model.safetensors"))
    scale = weights.pop("logit_scale").exp() * temperature  # answers have zero-shot's temperature
    torch.testing.assert_close(scale, base.pop("logit_scale").exp())
    assert all(torch.equal(weights[name], tensor) for name, tensor in base.items())

    (same,) = cr.Classifier.load(adapter).predict([drawing("vehicle", 2)])
    for which in ("zero_shot", "tuned"):
        assert same[which] == pytest.approx(answer[which], abs=1e-5)


@pytest.mark.slow
def test_two_runs_are_averaged_by_client(app, tmp_path):
    """The export's update is the weighted sum of those of the two runs' own adapter files."""
    import clip_randlora as cr

    client = app.client()
    archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=4)
    client.predict(handle_file(str(archive)), api_name="/load_archive")

    def deltas(adapter: Path) -> dict[str, torch.Tensor]:
        return cr.load_adapter(cr.load_model("lite0", device="cpu").net, adapter).deltas()

    def export(format: str, share: float) -> str:
        return client.predict(format, 1.0, "fp32", share, api_name="/export")

    train(client, shots=2)
    first = deltas(client.predict("adapter", api_name="/export"))
    with pytest.raises(AppError, match="there is no run before this one to average it with"):
        export("adapter", 0.25)
    train(client, shots=2, seed=2, method="lora")
    second = deltas(client.predict("adapter", api_name="/export"))
    with pytest.raises(AppError, match="peft is of one run alone"):
        export("peft", 0.5)
    with pytest.raises(AppError, match="must lie between 0 and 1"):
        export("adapter", 1.5)
    with zipfile.ZipFile(export("adapter", 0.25)) as zipped:
        zipped.extractall(tmp_path)
    average = deltas(tmp_path / "adapter")
    for name, delta in average.items():
        torch.testing.assert_close(delta, 0.25 * first[name] + 0.75 * second[name])
    assert any((delta - second[name]).abs().max() > 1e-4 for name, delta in average.items())
    classifier = cr.Classifier.load(tmp_path / "adapter" / "adapter.safetensors")
    assert classifier.classes == ("bird", "car")


@pytest.mark.slow
def test_onnx_in_half_precision_by_client(app, tmp_path):
    """A whole ONNX download at a chosen strength and precision, which answers as /predict does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    client = app.client()
    archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=4)
    client.predict(handle_file(str(archive)), api_name="/load_archive")
    train(client, shots=2)
    image = drawing("vehicle", 2)
    answer = client.predict(handle_file(str(image)), 0.5, api_name="/predict")["tuned"]
    with zipfile.ZipFile(client.predict("onnx", 0.5, "fp16", api_name="/export")) as zipped:
        zipped.extractall(tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "classifier.onnx")
    facts = session.get_modelmeta().custom_metadata_map
    assert (facts["precision"], facts["strength"]) == ('"fp16"', "0.5")

    import clip_randlora as cr

    pixels = cr.load_model("lite0").preprocess(Image.open(image).convert("RGB"))[None]
    (probabilities,) = session.run(None, {"pixels": pixels.numpy()})[0]
    named = dict(zip(json.loads(facts["classes"]), map(float, probabilities), strict=True))
    assert named == pytest.approx(answer, abs=2e-2)
    with zipfile.ZipFile(client.predict("web", 1.0, "fp16", api_name="/export")) as zipped:
        assert {"web/index.html", "web/classifier.onnx"} <= set(zipped.namelist())


@pytest.mark.slow
def test_clients_at_once_get_only_their_own_classes(app, tmp_path):
    names = sorted(folder.name for folder in (CLIPART / "train").iterdir())
    archives = [
        zip_of(tmp_path / f"{n}.zip", {f"{n}-a": names[n], f"{n}-b": names[n + 1]}, images=4)
        for n in range(CLIENTS)
    ]

    def whole_way(number: int) -> set[str]:
        client = app.client()
        client.predict(handle_file(str(archives[number])), api_name="/load_archive")
        rows = train(client, shots=2)
        places = [row["place"] for row in rows if "place" in row]
        assert places == sorted(places, reverse=True)
        assert set(rows[-1]["per_class"]) == {f"{number}-a", f"{number}-b"}
        image = handle_file(str(drawing("vehicle", 2)))
        return set(client.predict(image, 1.0, api_name="/predict")["tuned"])

    with ThreadPoolExecutor(CLIENTS) as pool:
        answered = list(pool.map(whole_way, range(CLIENTS)))
    assert answered == [{f"{n}-a", f"{n}-b"} for n in range(CLIENTS)]


@pytest.mark.slow
@pytest.mark.alone
def test_predictions_do_not_wait_for_a_training(app, tmp_path):
    ready, busy = app.client(), app.client()
    archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=4)
    ready.predict(handle_file(str(archive)), api_name="/load_archive")
    train(ready, shots=2)
    names = ("bird", "dessert", "fruit", "house", "vehicle")
    archive = zip_of(tmp_path / "more.zip", {name: name for name in names}, images=9)
    busy.predict(handle_file(str(archive)), api_name="/load_archive")
    job = busy.submit("lite0", "randlora", 16, 1, "fast", api_name="/train")
    while not any("step" in row for row in job.outputs()):
        time.sleep(0.2)
    image = handle_file(str(drawing("vehicle", 2)))
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        ready.predict(image, 0.5, api_name="/predict")
        seconds.append(time.monotonic() - started)
    assert not job.done(), "the training ended too early to show anything"
    print("answers while another trains:", ", ".join(f"{s:.2f} s" for s in seconds))
    assert max(seconds) < 3
    job.result()


@pytest.mark.slow
def test_the_app_ends_quietly_during_a_training(tmp_path):
    app = App(tmp_path / "app", errors=tmp_path / "errors.txt")
    try:
        client = app.client()
        names = ("bird", "dessert", "fruit", "house", "vehicle")
        archive = zip_of(tmp_path / "more.zip", {name: name for name in names}, images=9)
        client.predict(handle_file(str(archive)), api_name="/load_archive")
        job = client.submit("lite0", "randlora", 16, 1, "fast", api_name="/train")
        while not any("step" in row for row in job.outputs()):
            time.sleep(0.2)
    finally:
        app.close()
    errors = (tmp_path / "errors.txt").read_text()
    assert app.process.returncode == 0, errors
    assert "terminate called" not in errors and "Traceback" not in errors


@pytest.mark.slow
def test_memory_does_not_grow_from_training_to_training(tmp_path_factory, tmp_path):
    app = App(tmp_path_factory.mktemp("memory"))
    try:
        client = app.client()
        archive = zip_of(tmp_path / "mine.zip", {"bird": "bird", "car": "vehicle"}, images=8)
        client.predict(handle_file(str(archive)), api_name="/load_archive")
        image = handle_file(str(drawing("vehicle", 2)))
        resident = []
        for seed in (1, 2, 3):
            train(client, seed=seed)
            client.predict(image, 1.0, api_name="/predict")
            resident.append(app.resident_bytes())
        print("resident after each training:", ", ".join(f"{r / 1e6:.0f} MB" for r in resident))
        assert resident[2] < 1.10 * resident[1]
    finally:
        app.close()


def test_what_is_old_or_deleted_is_gone(tmp_path):
    from clip_randlora.app.app_settings import Settings
    from clip_randlora.app.uploads import Upload
    from clip_randlora.app.workspaces import Workspaces

    workspaces = Workspaces(Settings(folder=tmp_path / "all", keep_hours=1))
    mine, other = workspaces.of("me"), workspaces.of("somebody else")
    mine.add_class("cat")
    mine.add_images("cat", [Upload(drawing("mammal", 1), "1.webp")])
    assert workspaces.of("me") is mine
    assert Workspaces(workspaces.settings).of("me").classes == ["cat"]  # after a restart
    assert other.classes == []
    assert workspaces.sweep() == 0
    assert workspaces.sweep(now=time.time() + 3700) == 2
    assert list((tmp_path / "all").iterdir()) == []
    again = workspaces.of("me")
    assert again.classes == []
    again.add_class("dog")
    upload, shared = (tmp_path / "all" / name / "cat.png" for name in ("upload", "shared"))
    for file in (upload, shared):
        file.parent.mkdir()
        file.touch()
        workspaces.add_uploads("me", [file])
    workspaces.add_uploads("somebody else", [shared])
    workspaces.delete(again)
    assert [path.name for path in (tmp_path / "all").iterdir()] == ["shared"]
    assert workspaces.owns("somebody else", shared) and not workspaces.owns("me", shared)


def test_an_uploaded_run_may_not_name_a_path_of_the_server(tmp_path):
    import clip_randlora as cr
    from clip_randlora.app.app_settings import Settings
    from clip_randlora.app.workspace import Workspace

    workspace = Workspace(tmp_path / "mine", Settings(folder=tmp_path))
    model = cr.load_model("lite0")
    task = {
        "model": "/etc",
        "pretrained": None,
        "classes": ["a"],
        "templates": ["{}"],
        "prompts": {},
    }
    adapter = cr.attach(model.net, cr.LoRA(rank=1, targets=("q",), towers=("text",)))
    adapter.save(tmp_path / "a.safetensors", task)
    with pytest.raises(cr.UserError, match="base model /etc"):
        workspace.load_run(tmp_path / "a.safetensors", "a.safetensors")
    with zipfile.ZipFile(tmp_path / "run.zip", "w") as zipped:
        zipped.write(tmp_path / "a.safetensors", "run/adapter.safetensors")
        settings = {"model": "/etc", "pretrained": None, "classes": ["a"]}
        settings["train"] = cr.TrainConfig().model_dump(mode="json")
        zipped.writestr("run/config.yaml", yaml.safe_dump(settings))
    with pytest.raises(cr.UserError, match="base model /etc"):
        workspace.load_run(tmp_path / "run.zip", "run.zip")
    assert workspace.runs.in_use() is None
    assert list((tmp_path / "mine" / "runs").iterdir()) == []


@pytest.mark.slow
def test_many_images_at_once_give_a_table(tmp_path):
    import clip_randlora as cr
    from clip_randlora.app.app_settings import Settings
    from clip_randlora.app.service import Service
    from clip_randlora.app.uploads import Upload

    service = Service(Settings(folder=tmp_path / "all"))
    workspace = service.workspaces.of("me")
    model = cr.load_model("lite0")
    task = {
        "model": "lite0",
        "pretrained": "default",
        "classes": ["bird", "car"],
        "templates": ["a photo of a {}."],
        "prompts": {},
    }
    adapter = cr.attach(model.net, cr.LoRA(rank=1, targets=("q",), towers=("text",)))
    adapter.save(tmp_path / "a.safetensors", task)
    workspace.load_run(tmp_path / "a.safetensors", "a.safetensors")
    archive = zip_of(tmp_path / "some.zip", {"any": "bird"}, images=3)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no")
    Image.new("RGB", (9, 9)).save(tmp_path / "black.png")
    seen = []
    answered, table, skipped = service.classify_many(
        workspace,
        [Upload(path, path.name) for path in (archive, broken, tmp_path / "black.png")],
        1.0,
        lambda done, images: seen.append((done, images)),
    )
    assert len(answered) == 4 and seen == [(0, 5)]
    for _, answer in answered:  # a fresh adapter changes nothing
        assert answer["zero_shot"] == answer["tuned"]
    assert [entry.name for entry in skipped] == ["broken.png"]
    lines = table.read_text().splitlines()
    assert lines[0] == (
        "image,zero_shot,tuned,zero_shot: bird,zero_shot: car,tuned: bird,tuned: car"
    )
    assert len(lines) == 5
