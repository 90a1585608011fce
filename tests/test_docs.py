"""The documentation, without Sphinx: code that runs, options and files that exist, names that are all explained."""

import functools
import http.server
import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

import vaelib as vl
from vaelib.cli import app, main
from vaelib.runtime import OnnxVAE

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOWTO = DOCS / "howto"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.parent.name not in ("reference", "measured")]
FENCE = re.compile(r"^```(\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

NO_SOURCE = {
    "constant", "cosine", "embed", "encode", "soft_bound", "sum_per_image", "gaussian_log_prob", "laplace_log_prob",
    "bernoulli_log_prob", "Bernoulli", "Laplace", "StandardNormal", "LearnedGaussian", "reconstruction_loss", "Elbo",
    "Reconstruction", "elbo", "per_image_terms", "anomaly", "disentanglement", "features_of", "fidelity",
    "at_levels", "check_levels", "compare", "modularity_chance", "unit_of",
}  # fmt: skip
"""Definitions of textbooks, sums and means, and what runs others that have their source."""
NO_EXAMPLE = {"ImageStream", "Run", "describe"}
"""What others make: ``stream``, ``Trainer.fit``, and the example of ``register``."""


def module(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


reference, draw_images = module("reference"), module("draw_images")


def fences(page, *languages):
    return [(language, code) for language, code in FENCE.findall(page.read_text()) if language in languages]


def is_explained_by_others(value):
    """Records, protocols and errors show in the examples of what gives or raises them; an alias is no code."""
    kinds = (tuple, BaseException)
    return not inspect.isroutine(value) and (
        not inspect.isclass(value) or issubclass(value, kinds) or getattr(value, "_is_protocol", False)
    )


# Each page is run in an empty directory, its commands and code in order.


def photos(directory):
    """A folder as a person may have one: two subfolders, images of several sizes, one of them grey."""
    generator = torch.Generator().manual_seed(0)
    for index, (name, channel) in enumerate((("red", 0), ("blue", 2))):
        folder = directory / "photos" / name
        folder.mkdir(parents=True)
        for number in range(40):
            image = torch.rand(3, 40 + number % 3, 50, generator=generator) * 0.3
            image[channel] += 0.5
            vl.plots.save_grid(
                image[None] if number or index else image[None].mean(1, keepdim=True), folder / f"{number}.png"
            )
            (folder / f"{number}.png").rename(folder / f"{number}.jpg")  # the content counts, not the name


def own_images_ran(names, directory):
    assert names["reconstructions"].shape == (2, 3, 32, 32)
    assert (directory / "runs/mine.png").exists()
    assert (directory / "pairs.png").exists() and (directory / "red.png").exists()
    assert names["labelled"].condition.names == names["labels"].names == ("blue", "red")
    assert len(names["train"]) == 72  # nine tenths of them, streamed


def image_size_ran(names, directory):
    assert names["images"].shape == (1, 3, 64, 48)
    assert names["model"].spatial_multiple == 4
    smallest = [vae.encoder.stages[-3].weight.shape[0] for vae in (names["small"], names["large"])]
    assert smallest == [64, 128]


def resume_ran(names, directory):
    assert [record.epoch for record in names["history"]] == [1, 2]
    assert len((directory / "runs/first/history.csv").read_text().splitlines()) == 3


def many_gpus_ran(names, directory):
    assert (directory / "runs/many/last").is_dir()


def onnx_python_ran(names, directory):
    assert names["decoded"].shape == (100, 1, 16, 16)
    assert names["elbo"].shape == (100,)


def autoencoder(directory):
    """A directory as diffusers writes one."""
    torch.manual_seed(0)
    vae = vl.autoencoder_kl((3, 32, 32), 2, width=8, norm="group", groups=4, residual_blocks=1)
    vae.scaling = vl.LatentScaling(0.1, 0.18215)
    vl.to_diffusers(vae, directory / "vae")


def diffusers_ran(names, directory):
    assert names["wide"].shape == (1, 3, 32, 48)
    assert vl.from_diffusers(directory / "trained").scaling.scale == 0.18215
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(vl.from_diffusers(directory / "trained").reconstruct(x), names["vae"].reconstruct(x))
    assert torch.equal(vl.from_diffusers(directory / "own").embed(x), names["own"].embed(x))
    bundle = OnnxVAE(directory / "bundle").reconstruct(x.numpy())
    np.testing.assert_allclose(bundle, vl.from_diffusers(directory / "vae").reconstruct(x), rtol=0, atol=1e-5)


def first_stage_ran(names, directory):
    assert names["history"][-1].train.weight > 0
    assert names["vae"].latent_shape == (4, 8, 8) and not names["vae"].decoder.conv_out.weight.grad.isnan().any()


def photo(directory):
    vl.plots.save_grid(torch.rand(1, 3, 61, 90), directory / "photo.jpg")


def large_images_ran(names, directory):
    assert vl.data.read_images([directory / "again.png"]).shape == (1, 3, 61, 90)
    page = (HOWTO / "large_images.md").read_text()
    assert str(names["model"].metadata["tiling"]["decoder"]["rows"]) in page
    with pytest.raises(ValueError, match="tile") as refused:
        names["grouped"].reconstruct(names["x"], tile=48)
    assert str(refused.value) in page


RAN = {
    "first_stage": first_stage_ran,
    "diffusers": diffusers_ran,
    "own_images": own_images_ran,
    "image_size": image_size_ran,
    "resume": resume_ran,
    "many_gpus": many_gpus_ran,
    "onnx_python": onnx_python_ran,
    "large_images": large_images_ran,
}
GIVEN = {"own_images": photos, "diffusers": autoencoder, "large_images": photo}


def run_page(name, directory, monkeypatch, commands=True):
    monkeypatch.chdir(directory)
    names = {"__name__": "__main__"}
    for language, code in fences(HOWTO / f"{name}.md", "python", "bash"):
        if language == "python":
            exec(compile(code, f"{name}.md", "exec"), names)
        elif commands:
            for line in code.splitlines():
                assert main(shlex.split(line)[1:]) == 0, line
    return names


@pytest.mark.slow
@pytest.mark.parametrize("name", RAN)
def test_how_to_pages_run(name, tmp_path, monkeypatch):
    if name in GIVEN:
        GIVEN[name](tmp_path)
    RAN[name](run_page(name, tmp_path, monkeypatch, commands=name not in ("many_gpus", "first_stage")), tmp_path)


@pytest.mark.slow
def test_the_page_on_int8_runs(tmp_path, monkeypatch, capsys):
    run_page("int8", tmp_path, monkeypatch, commands=False)
    assert ("the bundle is written" in capsys.readouterr().out) == (tmp_path / "bundle" / "manifest.json").exists()


def test_every_page_with_code_runs_somewhere():
    """Those with cells when Sphinx builds them, the others here; JavaScript below."""
    for page in PAGES:
        text = page.read_text()
        if page.parent == HOWTO and "file_format: mystnb" not in text:
            assert page.stem in {*RAN, "int8", "onnx_javascript"}, page
        if "```{code-cell}" in text:
            assert text.startswith("---\nfile_format: mystnb\n"), page


def test_models_come_back_from_a_gpu_before_they_are_called():
    """On a machine with a GPU, `fit` leaves the model there, and the images of the page are on the CPU."""
    wrong = []
    for path in [*PAGES, ROOT / "README.md", *(ROOT / "examples").glob("*.py")]:
        text = path.read_text()
        for fitted in re.finditer(r"\.fit\(\s*(\w+), ", text):
            name, after = fitted[1], text[fitted.end() :]
            called = re.search(rf"\b{name}\.(reconstruct|encode|decode)\(", after)
            if called and f"{name}.cpu()" not in after[: called.start()]:
                wrong.append((path.name, called[0]))
    assert not wrong


def test_options_in_commands_exist():
    commands = typer.main.get_command(app).commands
    seen = 0
    for page in [*PAGES, ROOT / "README.md"]:
        for _, code in fences(page, "bash", "text"):
            for command, rest in re.findall(r"\bvaelib (\w+)(.*)", re.sub(r"#.*", "", code)):
                known = {o for parameter in commands[command].params for o in parameter.opts + parameter.secondary_opts}
                for option in re.findall(r"(--[\w-]+)", rest):
                    assert option in known | {"--help"}, (page.name, command, option)
                    seen += 1
    assert seen > 20


# JavaScript, where there is node, and a browser.


@pytest.fixture(scope="module")
def javascript(node_packages, tmp_path_factory):
    """The directory that the page describes."""
    directory = tmp_path_factory.mktemp("javascript")
    shutil.copytree(node_packages / "node_modules", directory / "node_modules", symlinks=True)
    torch.manual_seed(0)
    vl.export_onnx(vl.conv_vae((3, 8, 8), latent_dim=4, hidden_channels=(8,)), directory / "bundle")
    (_, node), (_, browser) = fences(HOWTO / "onnx_javascript.md", "javascript", "html")
    (directory / "decode.mjs").write_text(node)
    (directory / "index.html").write_text(browser)
    return directory


@pytest.mark.slow
def test_the_node_program_decodes(javascript):
    result = subprocess.run(["node", "decode.mjs"], cwd=javascript, capture_output=True, text=True, timeout=60)
    assert result.stdout.strip() == "8 3 8 8 true", result.stderr


@pytest.mark.slow
def test_the_page_decodes_in_a_browser(chromium, javascript, tmp_path):
    handler = functools.partial(QuietHandler, directory=str(javascript))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--timeout=20000", "--virtual-time-budget=20000"]
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        command = [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
        page = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
        server.shutdown()
    expected = OnnxVAE(javascript / "bundle").decode(np.zeros((1, 4), dtype=np.float32)).sum()
    shown = re.search(r'<p id="sum">([\d.]+)</p>', page)
    assert shown, page[-500:]
    assert float(shown.group(1)) == pytest.approx(expected, abs=0.02)
    assert page.count('type="range"') == 4


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


# What is public is explained.


def test_public_names_have_docstrings_examples_and_sources():
    theory = {"functional", "likelihoods", "priors", "corruptions", "objectives", "schedules", "evaluation"}
    for name, value in reference.public_names():
        if is_explained_by_others(value):
            continue
        text, last = inspect.getdoc(value) or "", name.split(".")[-1]
        assert ">>>" in text or last in NO_EXAMPLE, f"{name} has no example"
        of_module = inspect.getdoc(inspect.getmodule(value)) or ""
        if name.split(".")[1] in theory:
            assert "References:" in text + of_module or last in NO_SOURCE, f"{name} names no source"


def test_exceptions_to_the_rule_are_needed():
    values = {name.split(".")[-1]: inspect.getdoc(value) for name, value in reference.public_names()}
    assert all("References:" not in values[name] for name in NO_SOURCE)
    assert all(">>>" not in values[name] for name in NO_EXAMPLE)


def test_public_classes_explain_their_methods():
    for name, value in reference.public_names():
        for method, function in vars(value).items() if inspect.isclass(value) else ():
            if inspect.isfunction(function) and not method.startswith("_") and value.__module__.startswith("vaelib"):
                assert inspect.getdoc(function), f"{name}.{method}"


def test_the_reference_has_a_page_for_each_room(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    shutil.copytree(ROOT / "benchmarks/results", tmp_path / "benchmarks/results")
    reference.write()
    pages = {path.stem for path in (tmp_path / "docs/reference").iterdir()}
    assert pages == {"vaelib", "command_line", *reference.rooms()}
    assert {"data", "evaluation", "export", "functional", "objectives", "priors", "runtime", "training"} <= pages
    top = (tmp_path / "docs/reference/vaelib.md").read_text()
    for name in vl.__all__:
        assert name == "__version__" or name in reference.rooms() or f"`vl.{name} <" in top, name
    assert (tmp_path / "docs/measured/cpu-article.png").exists()


# Files and images.


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_to_files(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http") and target.split("/")[0] != "reference":
            assert (page.parent / target).exists(), target


def test_drawings_are_those_of_the_script():
    for path, content in draw_images.drawings():
        assert path.read_text() == content, f"run `python docs/draw_images.py`: {path.name} is out of date"


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_headings_that_exist(page):
    """As GitHub and MyST name them: lower case, no punctuation, a hyphen for a space."""
    for file, name in re.findall(r"\]\(([\w/.]*\.md)?#([^)]*)\)", page.read_text()):
        target = page.parent / file if file else page
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
        assert name in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
