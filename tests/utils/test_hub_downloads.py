"""What is fetched of the hub, and what happens if it refuses, breaks off or is not there."""

from __future__ import annotations

import pytest
from helpers import hub as loopback
from huggingface_hub import constants

import clip_randlora as cr
from clip_randlora.runs.run_source import LOADED, local_run
from clip_randlora.utils.hub import HubName, download

NAME = "someone/pets"
FILES = {
    "config.yaml": b"a: 1\n",
    "adapter.safetensors": bytes(range(256)) * 40,
    "metrics.json": b"{}",
    "pytorch_model.bin": b"a pickle",
    "adapter.pkl": b"another",
    "setup.py": b"print('hello')",
    "folder/config.yaml": b"b: 2\n",
}


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    """The library waits a second before it tries again."""
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)


def line(call, *arguments, **options) -> str:
    with pytest.raises(cr.UserError) as error:
        call(*arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_only_known_files_are_fetched_and_once(hub):
    hub.add(NAME, FILES)
    folder = local_run(f"hf-hub:{NAME}")
    known = ["adapter.safetensors", "config.yaml", "metrics.json"]
    assert sorted(path.name for path in folder.iterdir()) == known
    assert all((folder / name).read_bytes() == FILES[name] for name in known)
    assert not any(path.endswith((".bin", ".pkl", ".py")) for _, path, _ in hub.requests)
    hub.requests.clear()
    assert local_run(f"hf-hub:{NAME}") == folder
    assert not [path for method, path, _ in hub.requests if method == "GET" and "/api/" not in path]


def test_a_broken_connection_goes_on_where_it_stopped(hub, monkeypatch):
    """The library keeps whole pieces, of 10 MiB."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 250)
    hub.add(NAME, FILES)
    hub.cut["adapter.safetensors"] = [1000, 500]
    folder = local_run(f"hf-hub:{NAME}")
    assert (folder / "adapter.safetensors").read_bytes() == FILES["adapter.safetensors"]
    assert hub.asked("GET", "adapter.safetensors") == ["", "bytes=1000-", "bytes=1500-"]


def test_what_came_whole_before_a_failure_is_kept(hub):
    hub.add(NAME, FILES)
    hub.cut["adapter.safetensors"] = [0] * 10
    said = line(local_run, f"hf-hub:{NAME}")
    assert said == (
        f"hf-hub:{NAME}: the connection broke off; run it again, and what has come whole is kept"
    )
    hub.cut.clear()
    hub.requests.clear()
    folder = local_run(f"hf-hub:{NAME}")
    assert (folder / "adapter.safetensors").read_bytes() == FILES["adapter.safetensors"]
    assert hub.asked("GET", "adapter.safetensors") == [""]
    assert hub.asked("GET", "config.yaml") == []


def test_offline_with_and_without_a_cache(hub, monkeypatch, recwarn):
    hub.add(NAME, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert line(local_run, f"hf-hub:{NAME}") == (
        f"hf-hub:{NAME}: not in the cache, and HF_HUB_OFFLINE is set; unset it to download it once"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = local_run(f"hf-hub:{NAME}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert local_run(f"hf-hub:{NAME}") == folder
    assert (hub.requests, [str(w.message) for w in recwarn if "hub" in str(w.message)]) == ([], [])


@pytest.mark.parametrize("status", [None, 503])
def test_a_hub_that_is_not_there_with_and_without_a_cache(hub, status, monkeypatch):
    hub.add(NAME, FILES)
    folder = local_run(f"hf-hub:{NAME}")
    hub.status = status
    if status is None:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match=f"hf-hub:{NAME}: the hub cannot be reached; the cache's"):
        assert local_run(f"hf-hub:{NAME}") == folder
    said = line(local_run, "hf-hub:someone/else")
    assert said == "hf-hub:someone/else: " + (
        "the hub answers 503 (it is out of order); come back later"
        if status
        else "http://127.0.0.1:9 cannot be reached; check the network, or come back later"
    )


@pytest.mark.parametrize(
    ("token", "name", "says"),
    [
        (None, "someone/nothing", "there is no such repository, or it is private; correct the"),
        (None, "someone/secret", "there is no such repository, or it is private; correct the"),
        ("hf_wrong", NAME, "the hub refuses the token; make another one, then log in with"),
        (loopback.READER, "someone/secret", "there is no such repository, or the token may not"),
        (None, "someone/gated", "its owner wants to be asked first; ask at http://127.0.0.1:"),
        (
            None,
            "someone/gated",
            "/someone/gated, then log in with `hf auth login`, or set HF_T",
        ),
        (loopback.READER, f"{NAME}@v2", "there is no revision v2; see "),
        (None, "someone/model", "has no adapter.safetensors, so it is no run; if it is a model of"),
        (None, "pets", "no name of a repository; give hf-hub:ORG/NAME, or hf-hub:ORG/NAME@REV"),
        (None, "a/b/c", "no name of a repository"),
        (None, "a/../b", "no name of a repository"),
        (None, f"{NAME}@../../x", "no name of a repository"),
        (None, "https://huggingface.co/a/b", "no name of a repository"),
    ],
)
def test_each_error_is_one_line(hub, tmp_path, monkeypatch, token, name, says):
    hub.add(NAME, FILES)
    hub.add("someone/secret", FILES, private=True)
    hub.add("someone/gated", FILES, gated=True)
    hub.add("someone/model", {"open_clip_config.json": b"{}"})
    loopback.use(hub, tmp_path / "other", monkeypatch, token)
    said = line(local_run, f"hf-hub:{name}")
    assert said.startswith(f"hf-hub:{name}: ") and says in said
    assert line(cr.Classifier.from_pretrained, name, token=token).endswith(says[-20:]) or (
        says in line(cr.Classifier.from_pretrained, name, token=token)
    )


def test_a_token_is_sent_to_the_hub_alone(hub, tmp_path, monkeypatch):
    """The address to which large files are redirected is another host, and is not to know it."""
    hub.add("someone/secret", FILES, private=True)
    loopback.use(hub, tmp_path / "other", monkeypatch, None)
    local_run("hf-hub:someone/secret", token=loopback.TOKEN)
    assert hub.told  # the hub itself
    assert not any(path.startswith("/cdn/") for path in hub.told)


def test_a_file_that_is_too_large_is_not_fetched(hub):
    hub.add(NAME, FILES)
    said = line(download, HubName.parse(NAME), {**LOADED, "config.yaml": 4})
    assert said == (
        f"hf-hub:{NAME}: config.yaml has 5 bytes, more than the 4 that such a file may have; take "
        f"another repository"
    )
    assert not hub.asked("GET", "/config.yaml")


def test_a_folder_has_no_revision(tmp_path):
    said = line(cr.Classifier.from_pretrained, tmp_path, revision="main")
    assert said == f"revision main: {tmp_path} is a path; leave it out"


def test_a_model_without_its_weights_is_refused(hub, tiny_folder):
    """open_clip would go on with random ones."""
    config = (tiny_folder / "open_clip_config.json").read_bytes()
    hub.add("someone/model", {"open_clip_config.json": config})
    assert "could not load the weights of hf-hub:someone/model" in line(
        cr.load_model, "hf-hub:someone/model"
    )
    hub.add("someone/gated", {}, gated=True)
    assert line(cr.load_model, "hf-hub:someone/gated").startswith(
        "could not load the weights of hf-hub:someone/gated: its owner wants to be asked first"
    )


def test_a_tokenizer_that_is_a_program_is_not_run(hub, tiny_folder):
    text = (tiny_folder / "open_clip_config.json").read_text()
    start = '"text_cfg": {'
    assert start in text
    wanted = '"tokenizer_kwargs": {"trust_remote_code": true}, "hf_tokenizer_name": "a/b", '
    weights = (tiny_folder / "open_clip_model.safetensors").read_bytes()
    config = text.replace(start, start + wanted).encode()
    hub.add(
        "someone/model", {"open_clip_config.json": config, "open_clip_model.safetensors": weights}
    )
    model = cr.load_model("hf-hub:someone/model", device="cpu")
    assert "its tokenizer is a program of its author's, which is not run" in line(
        lambda: model.tokenizer
    )
