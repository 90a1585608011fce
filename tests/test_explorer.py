"""The explorer's scene, server and static page, without a browser; that is tests/test_explorer_browser.py."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import anyio
import hand_made
import numpy as np
import pytest
import torch

import vaelib as vl
from vaelib.cli import main
from vaelib.errors import ModelFileError
from vaelib.explorer import Data, application, build_scene, write_static
from vaelib.explorer.scene import _planes
from vaelib.explorer.server import largest_batch, page_files
from vaelib.explorer.static import CDN, INTEGRITY, VERSION
from vaelib.runtime import OnnxVAE

testclient = pytest.importorskip("starlette.testclient", reason="starlette's test client needs httpx")

BINARY = {"content-type": "application/octet-stream"}
PORT = 8321
OLD = Path(__file__).parent / "version_0_1" / "with_checksums" / "bundle"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """With one latent that carries nothing, and one that carries most."""
    torch.manual_seed(0)
    vae = vl.conv_vae((1, 8, 6), 4, hidden_channels=(8,))
    linear = vae.encoder.head[1]  # mu in its first four rows, logvar in the others
    with torch.no_grad():
        linear.weight[:4] *= torch.tensor([20.0, 20.0, 0.0, 40.0])[:, None]
        linear.weight[6], linear.bias[[2, 6]] = 0.0, 0.0
    directory = tmp_path_factory.mktemp("explorer") / "bundle"
    vl.export_onnx(vae, directory)
    return directory


@pytest.fixture(scope="module")
def model(bundle):
    return OnnxVAE(bundle)


@pytest.fixture(scope="module")
def data():
    images = np.random.default_rng(0).random((40, 1, 8, 6), dtype=np.float32)
    return Data("noise, test", images, [n % 3 for n in range(40)])


@pytest.fixture(scope="module")
def scene(bundle, model, data):
    return build_scene(bundle, model, data)


def served(model, scene):
    return testclient.TestClient(application(model, scene, PORT), base_url=f"http://127.0.0.1:{PORT}")


@pytest.fixture(scope="module")
def client(model, scene):
    with served(model, scene) as client:
        yield client


def post(client, call, values, **options):
    return client.post(f"/{call}", content=np.asarray(values, "<f4").tobytes(), headers=BINARY, **options)


def numbers(answer):
    assert answer.status_code == 200, answer.text
    return np.frombuffer(answer.content, "<f4")


def test_the_card_is_the_bundles_own_file(bundle, model, tmp_path, data):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    content = (bundle / "README.md").read_bytes()
    copy = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    card = copy / "README.md"

    def linked(to):
        card.unlink()
        card.symlink_to(to)

    shutil.copy(bundle / "README.md", tmp_path / "same")
    cases = [
        (lambda: card.write_bytes(content + b"<script>"), ModelFileError, "README.md is not the file that manifest"),
        (lambda: card.write_bytes(bytes(2**20 + 1)), ModelFileError, "must have at most 1048576 bytes, got 1048577"),
        (lambda: linked(secret), ModelFileError, "must be a file of the bundle's own, got a link to .*secret"),
        (lambda: linked(tmp_path / "same"), ModelFileError, "must be a file of the bundle's own, got a link"),
        (card.unlink, FileNotFoundError, r"there is no .*README\.md"),
        (lambda: os.mkfifo(card), FileNotFoundError, r"there is no .*README\.md"),
    ]
    card.write_bytes(content.replace(b"\n", b"\r\n"))  # as git gives it on Windows
    assert build_scene(copy, model, data).facts["card"] == content.decode()
    for change, error, match in cases:
        change()
        with pytest.raises(error, match=match):
            build_scene(copy, model, data)
    card.unlink()
    card.write_bytes(b"\xff")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["README.md"] = {"bytes": 1, "sha256": hashlib.sha256(b"\xff").hexdigest()}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ModelFileError, match=r"README\.md is no text in UTF-8"):
        build_scene(copy, model, data)


def test_latents_are_sorted_by_information_and_dead_ones_are_marked(model, data, scene):
    mu, logvar = (part.astype(np.float64) for part in model.encode(data.images))
    kl = (0.5 * (mu**2 + np.exp(logvar) - 1 - logvar)).mean(0)
    latents = scene.facts["latents"]
    assert [latent["index"] for latent in latents] == list(np.argsort(-kl))
    np.testing.assert_allclose([latent["kl"] for latent in latents], np.sort(kl)[::-1], rtol=1e-6)
    assert [latent["index"] for latent in latents if not latent["active"]] == [2]
    assert latents[0]["index"] == 3
    assert scene.facts["measure"] == "KL to the prior, nats"
    np.testing.assert_allclose(kl.sum(), scene.arrays["kl"].mean(), rtol=1e-5)


def test_the_data_have_their_elbo_by_draws_that_the_page_knows(model, data, scene):
    noise = scene.arrays["noise"]
    draws = [model.elbo_terms(data.images, np.repeat(draw[None], 40, axis=0)) for draw in noise]
    distortion, kl = np.mean(draws, axis=0)
    np.testing.assert_allclose(scene.arrays["distortion"], distortion, rtol=1e-6)
    np.testing.assert_allclose(scene.arrays["kl"], kl, rtol=1e-6)
    of_draws = np.sum(draws, axis=1).mean(1)
    another_way = -model.score(data.images, num_samples=64).mean()  # to the same expectation
    assert abs(of_draws.mean() - another_way) < 5 * of_draws.std(ddof=1) / len(noise) ** 0.5


def test_planes_are_orthonormal_and_pca_has_the_most_variance(scene):
    pca, latents = scene.facts["planes"]
    assert (pca["name"], latents["name"]) == ("pca", "latents")
    z = scene.arrays["z"].astype(np.float64)
    values = np.linalg.eigvalsh(np.cov(z.T, bias=True))[::-1]
    assert pca["explained"] == pytest.approx(values[:2].sum() / values.sum(), rel=1e-5)
    assert latents["explained"] < pca["explained"]
    for basis in scene.arrays["bases"]:
        np.testing.assert_allclose(basis @ basis.T, np.eye(2), atol=1e-6)
    first, second = (latent["index"] for latent in scene.facts["latents"][:2])
    assert latents["axes"] == [f"z{first}", f"z{second}"]
    assert np.flatnonzero(scene.arrays["bases"][1][0]) == [first]
    assert scene.arrays["origins"][1][[first, second]].tolist() == [0, 0]  # coordinates are the latents themselves


def test_without_data_samples_of_the_model_stand_in(bundle, model):
    scene = build_scene(bundle, model)
    assert scene.facts["data"] == {"name": "samples of the model", "count": 512, "given": False}
    assert scene.facts["labels"] is None
    np.testing.assert_array_equal(scene.arrays["z"], model.embed(model.sample(512, seed=0)))


@pytest.fixture
def plain():
    return Data("plain", np.random.default_rng(2).random((30, 1, 2, 2), dtype=np.float32), None)


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_one_and_two_latents_are_their_own_map(latent_dim):
    z = np.random.default_rng(2).random((30, latent_dim), dtype=np.float32)
    (plane,), origins, bases = _planes(z, [*range(latent_dim)])
    assert (plane["name"], plane["explained"]) == ("latents", pytest.approx(1))
    assert np.abs(bases[0]).sum() == latent_dim
    assert not origins.any()


def test_maps_of_latents_with_a_prior_that_has_no_kl_per_latent():
    model, images = OnnxVAE(OLD), OnnxVAE(OLD).sample(30, seed=1)
    scene = build_scene(OLD, model, Data("samples", images, None))
    assert scene.facts["measure"] == "KL to a Gaussian fitted to all posteriors, nats"
    mu, logvar = (torch.tensor(part, dtype=torch.float64) for part in model.encode(images))
    fitted = torch.distributions.Normal(mu.mean(0), (mu.var(0, correction=0) + logvar.exp().mean(0)).sqrt())
    posteriors = torch.distributions.Normal(mu, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posteriors, fitted).mean(0).sort(descending=True)
    found = scene.facts["latents"]
    np.testing.assert_allclose([latent["kl"] for latent in found], expected.values, rtol=1e-5)
    assert [latent["index"] for latent in found] == expected.indices.tolist()
    del model.contract["prior"]
    with pytest.raises(
        ValueError, match="`data` must be given: of the prior MixtureOfGaussians the bundle has no sampler"
    ):
        build_scene(OLD, model)


def test_a_bundle_of_version_0_1_has_its_page(tmp_path):
    model = OnnxVAE(OLD)
    scene = build_scene(OLD, model)
    assert scene.facts["graphs"]["vae"]["names"] == {"noise": "eps"}
    assert set(scene.arrays) == {"z", "logvar", "noise", "distortion", "kl", "origins", "bases"}
    images = model.sample(3, seed=0)
    with served(model, scene) as client:
        code = numbers(post(client, "encode", images)).reshape(3, 2, 2)
        np.testing.assert_array_equal(code, np.stack(model.encode(images), axis=1))
        noise = np.random.default_rng(0).standard_normal((6, 3), dtype=np.float32)  # of a mixture, by prior.onnx
        np.testing.assert_array_equal(numbers(post(client, "prior", noise)), model.from_noise(noise).ravel())
        assert post(client, "prior", noise[:1, :2]).status_code == 400
        assert numbers(post(client, "terms", images)).shape == (3 * 16 * 2,)
    write_static(OLD, model, scene, tmp_path / "page")
    assert (tmp_path / "page" / "prior.onnx").read_bytes() == (OLD / "prior.onnx").read_bytes()


def test_autoencoders_have_no_elbo(tmp_path, plain):
    bundle = hand_made.autoencoder(tmp_path / "bundle")
    model = OnnxVAE(bundle)
    with pytest.raises(ValueError, match="of the prior none the bundle has no sampler"):
        build_scene(bundle, model)
    scene = build_scene(bundle, model, plain)
    assert set(scene.arrays) == {"z", "origins", "bases"}
    assert scene.facts["measure"] == "variance"
    with served(model, scene) as client:
        np.testing.assert_array_equal(numbers(post(client, "encode", plain.images)), model.encode(plain.images).ravel())
        assert post(client, "terms", plain.images).status_code == 404


def test_what_does_not_fit_the_model_is_refused(bundle, model, data):
    with pytest.raises(ValueError, match=r"`images` must have shape \(B, 1, 8, 6\)"):
        build_scene(bundle, model, data._replace(images=data.images[:, :, :5]))
    with pytest.raises(ValueError, match=r"`labels` must have shape \(40\), got \(3,\)"):
        build_scene(bundle, model, data._replace(labels=[1, 2, 3]))


def test_the_page_gets_the_scene_and_the_models_numbers(client, model, data, scene):
    facts = client.get("/scene.json").json()
    assert facts["card"].startswith("---\ntags:")
    assert facts["largest_batch"] == largest_batch(model)
    found = np.frombuffer(client.get("/scene.bin").content, "<f4")
    expected = np.concatenate([scene.arrays[name].ravel() for name in facts["arrays"]])
    np.testing.assert_array_equal(found, expected)

    z = np.random.default_rng(1).standard_normal((3, 4), dtype=np.float32)
    np.testing.assert_array_equal(numbers(post(client, "decode", z)).reshape(3, 1, 8, 6), model.decode(z))
    code = numbers(post(client, "encode", data.images[:5])).reshape(5, 2, 4)
    np.testing.assert_array_equal(code, np.stack(model.encode(data.images[:5]), axis=1))
    terms = numbers(post(client, "terms", data.images[:2])).reshape(2, len(scene.arrays["noise"]), 2)
    np.testing.assert_allclose(terms.mean(1)[:, 0], scene.arrays["distortion"][:2], rtol=1e-6)
    np.testing.assert_allclose(terms.mean(1)[:, 1], scene.arrays["kl"][:2], rtol=1e-6)


def test_every_file_of_the_page_is_served_with_its_type_and_a_policy(client):
    types = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for name in page_files():
        answer = client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith(types[name.rpartition(".")[2]])
    home = client.get("/")
    assert home.content == page_files()["index.html"]
    policy = home.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert home.headers["x-content-type-options"] == "nosniff"
    assert home.headers["cache-control"] == "no-store"


def test_the_page_names_no_other_place():
    for name, content in page_files().items():
        known = (b"http://www.w3.org/2000/svg", b"https://www.w3.org/")  # a namespace, and specifications in comments
        found = [
            url for url in re.findall(rb"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`)]*", content) if not url.startswith(known)
        ]
        assert not found, name
        assert b"innerHTML" not in content
        assert b"<script>" not in content


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "127.0.0.1.evil.example:8321"},
        {"host": "127.0.0.1:9999"},
        {"host": ""},
        {"origin": "http://evil.example"},
        {"origin": "http://127.0.0.1:9999"},
        {"origin": "https://127.0.0.1:8321"},
        {"origin": "null"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/scene.json", "/decode"])
def test_another_host_or_origin_is_turned_away(client, headers, path):
    answer = client.get(path, headers=headers)
    assert answer.status_code == 403
    assert answer.text.endswith(".")
    assert "content-security-policy" in answer.headers


def test_its_own_names_are_let_in(client):
    for host in ("127.0.0.1:8321", "localhost:8321"):
        assert client.get("/", headers={"host": host, "origin": f"http://{host}"}).status_code == 200


@pytest.mark.parametrize(
    ("call", "content", "headers", "status", "sentence"),
    [
        ("decode", b"{}", {"content-type": "application/json"}, 415, "The body must be application/octet-stream"),
        ("decode", b"z=1", {"content-type": "application/x-www-form-urlencoded"}, 415, "not text"),
        ("decode", b"", BINARY, 400, r"items of shape \(4,\), 16 bytes each, got 0 bytes"),
        ("decode", b"123", BINARY, 400, "got 3 bytes"),
        ("decode", bytes(17), BINARY, 400, "got 17 bytes"),
        ("decode", np.full(4, np.nan, "<f4").tobytes(), BINARY, 422, "`z` must be finite"),
        ("decode", np.full(4, np.inf, "<f4").tobytes(), BINARY, 422, "`z` must be finite"),
        ("encode", np.full(48, np.nan, "<f4").tobytes(), BINARY, 422, r"`images` must have values in \[0, 1\]"),
        ("encode", np.full(48, 255, "<f4").tobytes(), BINARY, 422, "Divide 8-bit images by 255"),
        ("terms", np.full(48, -1, "<f4").tobytes(), BINARY, 422, r"`images` must have values in \[0, 1\]"),
        ("encode", b"\x89PNG\r\n\x1a\n" + bytes(100), BINARY, 400, r"items of shape \(1, 8, 6\), 192 bytes each"),
    ],
)
def test_a_malformed_body_gets_a_sentence(client, call, content, headers, status, sentence):
    answer = client.post(f"/{call}", content=content, headers=headers)
    assert answer.status_code == status
    assert re.search(sentence, answer.text)


def asked(directory, calls):
    """Status and text, or numbers, of each call to the page of a bundle written by hand."""
    model = OnnxVAE(directory, threads=1)
    with served(model, build_scene(directory, model)) as client:
        answers = [post(client, call, values) for call, values in calls]
    return model, [numbers(answer) if answer.status_code == 200 else answer for answer in answers]


@pytest.mark.parametrize(
    ("make", "call", "values", "sentence"),
    [
        ("conditional", "decode", [0, 0], "The model takes a condition"),
        ("conditional", "decode?label=3", [0, 0], r"`labels` must be labels in \[0, 3\), got 3"),
        ("conditional", "decode?label=-1", [0, 0], r"`labels` must be labels in \[0, 3\), got -1"),
        ("conditional", "terms?label=cow", [0] * 4, "`labels` must be among cat, dog, owl, got 'cow'"),
        ("conditional", "encode?label=", [0] * 4, "`labels` must be among cat, dog, owl, got ''"),
        ("conditional", "decode?label=" + "9" * 40, [0, 0], "`labels` must be whole numbers or names, got 9999"),
        ("quantised", "decode?label=1", [0] * 4, "`labels` must be None: the model takes no condition"),
        ("quantised", "codes", [0, 1, 2, 5], r"`codes` must have values in \[0, 5\), got \[0, 5\]"),
        ("quantised", "codes", [0, 1, 2, 0.5], r"`codes` must be whole numbers in \[0, 16777216\]"),
        ("quantised", "codes", [0, 1, 2, -1], "`codes` must be whole numbers"),
        ("quantised", "codes", [0, 1, 2, np.nan], "`codes` must be whole numbers"),
        ("quantised", "codes", [0, 1, 2, np.inf], "`codes` must be whole numbers"),
    ],
)
def test_wrong_labels_and_codes_get_a_sentence(tmp_path, make, call, values, sentence):
    _, (answer,) = asked(getattr(hand_made, make)(tmp_path / "bundle"), [(call, values)])
    assert answer.status_code == 422
    assert re.search(sentence, answer.text)


def test_the_page_of_a_conditional_model(tmp_path, plain):
    """A label is of all items of a call, by number or name; the data are encoded with their own."""
    bundle = hand_made.conditional(tmp_path / "bundle")
    z, image = np.float32([[0.5, -1], [1, 2]]), np.full((1, 1, 2, 2), 0.25, np.float32)
    calls = [("decode?label=2", z), ("decode?label=owl", z), ("encode?label=1", image), ("prior?label=0", z)]
    model, (decoded, by_name, code, drawn) = asked(bundle, calls)
    np.testing.assert_array_equal(decoded, model.decode(z, condition=2).ravel())
    np.testing.assert_array_equal(by_name, decoded)
    np.testing.assert_array_equal(code, np.hstack(model.encode(image, condition=1)).ravel())
    np.testing.assert_array_equal(drawn, z.ravel())
    scene = build_scene(bundle, model)
    assert scene.facts["condition"]["names"] == scene.facts["class_names"] == hand_made.NAMES
    assert scene.facts["labels"][:4] == [0, 1, 2, 0]
    images, labels = plain.images, [n % 3 for n in range(30)]
    scene = build_scene(bundle, model, Data("mine", images, labels))
    np.testing.assert_array_equal(scene.arrays["z"], model.embed(images, condition=labels))
    with pytest.raises(ValueError, match="The model takes a condition"):
        build_scene(bundle, model, Data("mine", images, None))
    with pytest.raises(ValueError, match=r"`labels` must be labels in \[0, 3\), got 3"):
        build_scene(bundle, model, Data("mine", images, list(range(30))))
    with pytest.raises(ValueError, match="`data` must have the model's classes, cat, dog, owl, got dog, cat, owl"):
        build_scene(bundle, model, Data("mine", images, labels, ("dog", "cat", "owl")))
    vector = hand_made.of_a_vector(tmp_path / "vector")
    with pytest.raises(ValueError, match="The explorer shows conditions that are labels, the model's is a vector"):
        build_scene(vector, OnnxVAE(vector))


@pytest.mark.parametrize("is_uniform", [False, True])
def test_the_page_of_a_quantised_model(tmp_path, is_uniform):
    bundle = hand_made.quantised(tmp_path / "bundle", is_uniform=is_uniform)
    noise, image = np.random.default_rng(0).standard_normal((3, 4)), np.full((2, 1, 2, 2), 0.3, np.float32)
    calls = [("codes", [[0, 1, 2, 4]]), ("prior", noise), ("encode", image), ("terms", image)]
    model, (z, drawn, code, nats) = asked(bundle, calls)
    np.testing.assert_array_equal(z, model.embed_codes(np.array([[0, 1, 2, 4]])).ravel())
    codes = model.codes_from_noise(noise.astype(np.float32))
    np.testing.assert_array_equal(drawn.reshape(3, 8)[:, 4:], codes)
    np.testing.assert_array_equal(drawn.reshape(3, 8)[:, :4], model.embed_codes(codes).reshape(3, 4))
    np.testing.assert_array_equal(code.reshape(2, 8)[:, 4:], model.encode_codes(image))
    np.testing.assert_array_equal(nats.reshape(2, 2), np.stack(model.elbo_terms(image), axis=1))
    scene = build_scene(bundle, model)
    assert scene.facts["codebook"]["num_codes"] == 5 and scene.facts["measure"] == "variance"
    np.testing.assert_array_equal(scene.arrays["codes"], model.encode_codes(model.sample(512, seed=0)))
    model.metadata["codes"]["num_codes"] = 2**24 + 1
    with pytest.raises(ValueError, match="The explorer shows at most 16777216 codes, the model has 16777217"):
        build_scene(bundle, model)


def test_a_hundred_megapixels_are_not_read_to_the_end(client, model, scene):
    largest = largest_batch(model)
    assert largest * 192 <= 2**24
    taken, answered = [], []

    async def receive():
        taken.append(2**20)
        return {"type": "http.request", "body": bytes(2**20), "more_body": len(taken) < 400}

    async def send(message):
        answered.append(message)

    headers = [(b"host", b"127.0.0.1:8321"), (b"content-type", b"application/octet-stream")]
    scope = {"type": "http", "method": "POST", "path": "/encode", "query_string": b"", "headers": headers}
    anyio.run(application(model, scene, PORT), scope, receive, send)
    assert sum(taken) <= 2**24 + 2**20
    assert answered[0]["status"] == 413
    assert f"at most {largest} items of 192 bytes" in answered[1]["body"].decode()
    assert client.post("/encode", content=bytes(192 * (largest + 1)), headers=BINARY).status_code == 413


_PATHS = (
    "/../pyproject.toml /%2e%2e/%2e%2e/pyproject.toml /..%2f..%2fpyproject.toml /page/index.html //etc/passwd"
    " /decoder.onnx /manifest.json /main.js/../server.py /main.js%00 /. /favicon.ico"
)


@pytest.mark.parametrize("path", _PATHS.split())
def test_no_path_opens_a_file(client, path):
    answer = client.get(path)
    assert 400 <= answer.status_code < 500 or answer.content == page_files()["index.html"]
    assert client.get("/decode").status_code == 405
    assert client.post("/main.js").status_code == 405


def test_the_server_never_imports_torch(bundle, tmp_path):
    code = f"""
import sys, threading, urllib.request
from vaelib.runtime import OnnxVAE
from vaelib.explorer import build_scene, serve, write_static
model = OnnxVAE({str(bundle)!r})
scene = build_scene({str(bundle)!r}, model)
write_static({str(bundle)!r}, model, scene, {str(tmp_path / "page")!r})
address = []
threading.Thread(target=lambda: serve(model, scene, port=0, ready=address.append), daemon=True).start()
while not address: pass
assert address[0].startswith("http://127.0.0.1:")
page = urllib.request.urlopen(address[0]).read()
assert b"vaelib explorer" in page
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "torchvision", "PIL", "typer")]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_a_taken_port_is_reported(bundle, capsys, monkeypatch):
    monkeypatch.setattr("vaelib.runtime.engine._SECONDS", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["explore", str(bundle), "--no-browser", "--port", str(port)]) == 1
    assert "Address already in use" in capsys.readouterr().err


def fake_install(place):
    package = place / "node_modules" / "onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text(json.dumps({"name": "onnxruntime-web"}))
    for name in INTEGRITY:
        (package / "dist" / name).write_text(name)
    return package


def test_the_static_page_is_the_served_one_with_graphs_and_a_policy(bundle, model, scene, tmp_path):
    write_static(bundle, model, scene, tmp_path / "page")
    written = {path.name: path.read_bytes() for path in (tmp_path / "page").iterdir()}
    served = page_files()
    graphs = {"encoder.onnx", "decoder.onnx", "vae.onnx"}
    assert set(written) == {*served, *graphs, "scene.json", "scene.bin", "vaelib-page.json"}
    listed = json.loads(written["vaelib-page.json"])["files"]
    assert listed == {
        name: {"sha256": hashlib.sha256(content).hexdigest()}
        for name, content in written.items()
        if name != "vaelib-page.json"
    }
    assert {name for name in served if served[name] != written[name]} == {"index.html"}
    assert (bundle / "decoder.onnx").read_bytes() == written["decoder.onnx"]
    runtime = json.loads(written["scene.json"])["runtime"]
    assert runtime == {"place": CDN, "integrity": INTEGRITY}
    assert VERSION in CDN
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', written["index.html"].decode())[1]
    assert f"connect-src 'self' {CDN};" in policy
    assert "'unsafe-eval'" not in policy
    write_static(bundle, model, scene, tmp_path / "page")  # its own may be replaced


def test_an_installed_onnxruntime_web_is_copied_with_its_hashes(bundle, model, scene, tmp_path):
    package = fake_install(tmp_path)
    for place in (tmp_path, package):
        write_static(bundle, model, scene, tmp_path / "page", onnxruntime_web=place)
        runtime = json.loads((tmp_path / "page" / "scene.json").read_text())["runtime"]
        assert runtime["place"] == "./"
        assert set(runtime["integrity"]) == set(INTEGRITY)
        for name, text in runtime["integrity"].items():
            assert (tmp_path / "page" / name).read_text() == name
            assert text.startswith("sha384-") and text != INTEGRITY[name]
        assert CDN.encode() not in (tmp_path / "page" / "index.html").read_bytes()


def test_places_that_a_static_page_cannot_have(bundle, model, scene, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("scene.json", "thesis.tex", *"abcd"):
        (tmp_path / "mine" / name).touch()
    with pytest.raises(
        FileExistsError,
        match="must be new, empty, or hold an explorer's page .* holds a, b, c, d, scene.json and 1 more",
    ):
        write_static(bundle, model, scene, tmp_path / "mine")
    assert len(os.listdir(tmp_path / "mine")) == 6
    with pytest.raises(
        FileNotFoundError, match="`onnxruntime_web` must be where `npm install onnxruntime-web` was run"
    ):
        write_static(bundle, model, scene, tmp_path / "page", onnxruntime_web=tmp_path)
    assert not (tmp_path / "page").exists()


def test_only_the_files_of_a_page_are_replaced(bundle, model, scene, tmp_path, monkeypatch):
    page = tmp_path / "pages" / "page"
    (tmp_path / "link").symlink_to(page)
    package = fake_install(tmp_path)
    write_static(bundle, model, scene, tmp_path / "link", onnxruntime_web=package)
    assert (tmp_path / "link").is_symlink() and set(INTEGRITY) < set(os.listdir(page))
    (page / "CNAME").write_text("mine")
    monkeypatch.chdir(page)
    write_static(bundle, model, scene, ".")
    assert (page / "CNAME").read_text() == "mine" and not set(INTEGRITY) & set(os.listdir(page))
    (page / "index.html").write_text("mine")
    with pytest.raises(FileExistsError, match=r"changed since, .* holds index.html\. Move them away"):
        write_static(bundle, model, scene, page)
    assert (page / "index.html").read_text() == "mine"


def test_the_command_writes_a_page_of_named_data(bundle, tmp_path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (30, 8, 6), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=[f"class{i:02d}" for i in range(30)])
    page = tmp_path / "page"
    options = ["--data", str(tmp_path / "images.npz"), "--split", "all", "--num", "20", "--static", str(page)]
    assert main(["explore", str(bundle), *options]) == 0
    assert f"Written to {page}" in capsys.readouterr().out
    facts = json.loads((page / "scene.json").read_text())
    assert facts["data"] == {"name": "images.npz, all", "count": 20, "given": True}
    mu = np.frombuffer((page / "scene.bin").read_bytes(), "<f4")[: 20 * 4].reshape(20, 4)
    labels = facts["labels"]
    assert facts["class_names"][12] == "class12"
    assert len(set(labels)) == 20 and labels != sorted(labels)  # a random choice, each with its own label
    expected = OnnxVAE(bundle).encode(images[labels][:, None].astype(np.float32) / 255)[0]
    np.testing.assert_allclose(mu, expected, atol=1e-6)


def test_the_command_refuses(bundle, tmp_path, capsys, monkeypatch):
    assert main(["explore", str(tmp_path)]) == 1
    assert "`BUNDLE` must be a bundle of vaelib's" in capsys.readouterr().err
    assert main(["explore", str(bundle), "--onnxruntime-web", str(tmp_path)]) == 1
    assert "`--onnxruntime-web` needs `--static`" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["explore", str(bundle)]) == 1
    assert "The explorer needs an optional dependency: pip install 'vaelib[explore]'" in capsys.readouterr().err


def test_the_wheel_holds_the_page():
    folder = Path(vl.__file__).parent / "explorer" / "page"
    assert {path.name for path in folder.iterdir()} == set(page_files())
    imports = re.findall(r'(?:from|import\() ?\S*?"\./([\w.-]+)"', "".join(p.read_text() for p in folder.glob("*.js")))
    assert set(imports) <= set(page_files())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for a child")
def test_ctrl_c_ends_the_explorer_at_once(bundle):
    """While a browser keeps one connection open, and another is in the middle of a request."""
    command = [sys.executable, "-m", "vaelib", "explore", str(bundle), "--no-browser", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(process.stdout.readline().split("/")[2].partition(":")[2])
            idle, busy = (socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(2))
            with idle, busy:
                host = f"Host: 127.0.0.1:{port}\r\nConnection: keep-alive\r\n"
                idle.sendall(f"GET /scene.json HTTP/1.1\r\n{host}\r\n".encode())
                assert idle.recv(100).startswith(b"HTTP/1.1 200")
                kind = "Content-Type: application/octet-stream\r\nContent-Length: 64\r\n"
                busy.sendall(f"POST /decode HTTP/1.1\r\n{host}{kind}\r\n".encode() + bytes(16))
                time.sleep(0.5)
                process.send_signal(signal.SIGINT)
                started = time.perf_counter()
                assert process.wait(timeout=20) == 0
                assert time.perf_counter() - started < 5
            assert process.stderr.read() == ""
        finally:
            process.kill()
