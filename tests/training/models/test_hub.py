import pytest
from huggingface_hub import constants

from conf.errors import UserError
from tests.helpers.hub import COMMIT, serve_hub
from training.models.hub import commit_of, fetch

SETTING = "autoencoder.path=hf://org/name"
FILES = {
    "config.json": "root",
    "model.safetensors": "root weights",
    "vae/config.json": "vae",
    "vae/model.safetensors": "vae weights",
    "vae/model.bin": "a pickle",
    "vae/code.py": "code",
    "vae/deeper/model.safetensors": "deeper",
    "[a]/config.json": "odd name",
}


@pytest.fixture
def hub(tmp_path):
    for name, text in FILES.items():
        (tmp_path / "repo" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "repo" / name).write_text(text)
    with serve_hub("org/name", tmp_path / "repo", tmp_path / "cache") as hub:
        yield hub


def get(subfolder=None, revision=None, patterns=("config.json", "*.safetensors"), name="org/name"):
    return fetch(f"hf://{name}", subfolder, revision, patterns, SETTING)


def refused(**arguments):
    with pytest.raises(UserError) as caught:
        get(**arguments)
    assert caught.value.setting == SETTING
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_what_the_patterns_name_is_fetched_and_nothing_else(hub, revision):
    folder = get("vae", revision)
    assert {item.name: item.read_text() for item in folder.iterdir()} == {
        "config.json": "vae",
        "model.safetensors": "vae weights",
    }
    assert sorted(hub.fetched) == ["vae/config.json", "vae/model.safetensors"]


def test_the_root_is_a_folder_without_those_below(hub):
    assert {item.name for item in get().iterdir()} == {"config.json", "model.safetensors"}
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]


def test_a_subfolder_is_no_pattern(hub):
    assert (get("[a]") / "config.json").read_text() == "odd name"
    assert hub.fetched == ["[a]/config.json"]


def test_what_is_here_is_not_fetched_again_and_does_without_the_hub(hub, monkeypatch):
    folder = get("vae")
    hub.fetched.clear()
    assert get("vae") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert get("vae") == folder
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.stop()
    assert get("vae") == folder
    assert hub.fetched == []


def test_what_is_not_there_is_refused(hub):
    assert "has no revision v9" in refused(revision="v9")
    assert "is not on the hub, or is private" in refused(name="org/other")
    assert "has no file config.json or *.safetensors in unet" in refused(subfolder="unet")
    assert "has no file *.onnx at its root" in refused(patterns=("*.onnx",))


@pytest.mark.parametrize("name", ["org", "org/name/vae", "../name", "org/", "/name", "a b/c", ""])
def test_a_name_that_is_none_is_refused(name):
    assert "names no repository; write hf://ORG/NAME" in refused(name=name)


@pytest.mark.parametrize("subfolder", ["../vae", "/vae", "", "a/../../b"])
def test_a_subfolder_outside_is_refused(subfolder):
    assert "is no folder in there" in refused(subfolder=subfolder)


def test_a_hub_out_of_reach_is_said(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "was never fetched, and the hub cannot be reached" in refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    get("vae")
    hub.stop()
    assert "is only half here, and the hub cannot be reached" in refused(subfolder="[a]")
    assert "was never fetched, and the hub cannot be reached" in refused(revision="v1")


def test_a_failure_on_the_way_is_named_with_its_status(hub, monkeypatch):
    answer = hub.answer

    def forbid(path):
        return (403, {}, b"{}") if "/resolve/" in path else answer(path)

    monkeypatch.setattr(hub, "answer", forbid)
    assert "was refused by the hub with status 403" in refused()


@pytest.mark.parametrize("revision", [None, "main", "v1", COMMIT])
def test_the_commit_of_what_was_fetched_is_known(hub, revision):
    """A branch goes on, and what was made with its weights then has to be found again."""
    get("vae", revision)
    assert commit_of("hf://org/name", revision) == COMMIT


def test_of_what_was_never_fetched_no_commit_is_known(hub):
    assert commit_of("hf://org/name", "main") == "main"
    assert commit_of("a/folder", None) is None
