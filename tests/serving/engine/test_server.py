"""The HTTP server: requests, bad requests, maps that are loaded and unloaded meanwhile."""

from __future__ import annotations

import shutil

import pytest

SENTENCE = "w10 w20 w30 w40 w50 w11 w21"


@pytest.fixture(scope="module")
def server(model, maps, tmp_path_factory):
    from benchmarks.serving.server import serve

    folder = tmp_path_factory.mktemp("served")
    shutil.copytree(maps, folder, dirs_exist_ok=True)
    with serve(model, folder, folder / "server.log", "--enforce-eager", max_maps=4) as started:
        (folder / "broken.safetensors").write_bytes(b"\x80\x04 pickle")  # one that is there at the start stops it
        yield started


def test_edited_and_plain_completions(server):
    plain, edited = server.complete(SENTENCE), server.complete(SENTENCE, "fr-en", xargs={"incline_alpha": 0.3})
    assert plain.status_code == edited.status_code == 200
    assert plain.json()["choices"][0]["text"] != edited.json()["choices"][0]["text"]


REFUSED = {
    "map": ({"map": "xx-en"}, "not a loaded map"),
    "alpha": ({"map": "fr-en", "xargs": {"incline_alpha": 2}}, "allowed: -1 to 1"),
    "positions": ({"map": "fr-en", "xargs": {"incline_positions": "none"}}, "allowed: last, generated, all"),
    "key": ({"map": "fr-en", "xargs": {"incline_layers": 3}}, "incline_layers is not known"),
    "beams": ({"map": "fr-en", "use_beam_search": True, "n": 2}, "beam search"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_requests_get_400_and_the_server_lives(server, arguments, message):
    refused = server.complete(SENTENCE, **arguments)
    assert refused.status_code == 400, refused.text
    assert message in refused.json()["error"]["message"]
    assert server.alive()


def test_maps_over_http(server):
    import httpx

    url = f"{server.url}/v1/incline"
    listed = httpx.get(url).json()
    assert set(listed["maps"]) == {"de-en", "fr-en", "tr-en"}
    assert "broken.safetensors" in listed["files"]
    loaded = httpx.post(url, json={"name": "second", "path": "fr-en.safetensors"}, timeout=60)
    assert loaded.status_code == 200, loaded.text
    first, second = (server.complete(SENTENCE, name, xargs={"incline_alpha": 0.3}) for name in ("fr-en", "second"))
    assert first.json()["choices"][0]["text"] == second.json()["choices"][0]["text"]
    assert httpx.delete(f"{url}/second").status_code == 200
    assert server.complete(SENTENCE, "second").status_code == 400
    for body in ({"name": "x", "path": "../x"}, {"name": "x", "path": "broken.safetensors"}, {"name": ""}, [], {}):
        assert httpx.post(url, json=body, timeout=60).status_code == 400
    assert httpx.delete(f"{url}/second").status_code == 400
    assert server.alive()


def test_under_load(server):
    from benchmarks.serving.load import PROMPTS, run

    prompts = {language: f"w{number} {SENTENCE}" for number, language in enumerate(PROMPTS, 10)}
    report = run(server, seconds=20, concurrent=16, prompts=prompts)
    assert not report.errors, report.errors[:5]
    assert report.plain_changed == 0
    assert report.refused > 0
    assert report.loads > 0
    assert server.alive()
