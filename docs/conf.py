"""Sphinx: ``sphinx-build -W --keep-going -b html docs build/docs``. Nothing is fetched, at building or at reading."""

from __future__ import annotations

import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

sys.path.insert(0, str(Path(__file__).parent))

import reference

import vaelib

REPOSITORY = "https://github.com/vaelib/vaelib/blob/main/"

project = "vaelib"
author = "The vaelib developers"
project_copyright = "2026, The vaelib developers"
version = release = vaelib.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
exclude_patterns = ["**/.ipynb_checkpoints"]
html_theme = "furo"
html_title = "vaelib"
html_static_path = ["_static"]
html_css_files = ["vaelib.css"]
html_math_renderer = "mathml"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
nb_output_stderr = "remove-warn"
os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm, which accelerate imports, would like widgets

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
add_module_names = False
napoleon_use_rtype = False
napoleon_preprocess_types = False

nitpicky = True


def setup(app: Sphinx) -> None:
    """Reference pages before reading, links into the repository while reading, a check at the end."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_displayed_math, None))
    app.connect("builder-inited", lambda app: reference.write())
    app.connect("source-read", _link_to_pages)
    app.connect("autodoc-process-docstring", _no_type_in_attributes, priority=400)
    app.connect("missing-reference", _find_by_last_name)
    app.connect("env-check-consistency", _check_that_all_is_there)


def _link_to_pages(app: Sphinx, docname: str, source: list[str]) -> None:
    """Links out of docs/: what was measured is a page here too, all else is at the repository."""
    text = re.sub(r"\]\((\.\./)+benchmarks/results/", f"]({'../' * docname.count('/')}measured/", source[0])
    source[0] = re.sub(rf"\]\({'../' * (docname.count('/') + 1)}(?=\w)", f"]({REPOSITORY}", text)


def _no_type_in_attributes(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Behind an empty comment napoleon does not take what stands before a colon for the attribute's type."""
    if what in ("attribute", "property", "data"):
        lines[:0] = ["..", ""]


def _find_by_last_name(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """A name as users write it, ``VAE`` or ``vaelib.VAE``, wherever it is documented; others' names stay text."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    objects = env.domains.python_domain.objects
    for wanted in (target, ".".join(target.split(".")[-2:]), target.split(".")[-1]):
        found = [name for name in objects if name == wanted or name.endswith(f".{wanted}")]
        if len(found) == 1 and not target.startswith(("torch.", "numpy.", "collections.")):
            entry = objects[found[0]]
            return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, found[0])
    is_role = isinstance(contnode, nodes.literal)  # else a type in a signature, which may be private
    return None if is_role and target.startswith("vaelib") else contnode


def _check_that_all_is_there(app: Sphinx, env: Any) -> None:
    objects = env.domains.python_domain.objects
    for name, value in reference.public_names():
        if name not in objects:
            logging.getLogger(__name__).warning("The public name %s is missing from the reference.", name)
        elif (inspect.isclass(value) or inspect.isroutine(value)) and not inspect.getdoc(value):
            logging.getLogger(__name__).warning("The public name %s has no docstring.", name)


def _inline_math(translator: Any, node: Any) -> None:
    translator.body.append(latex2mathml.converter.convert(node.astext()))
    raise nodes.SkipNode


def _displayed_math(translator: Any, node: Any) -> None:
    formula = latex2mathml.converter.convert(node.astext(), display="block")
    translator.body.append(f'<div class="math">{formula}</div>')
    raise nodes.SkipNode
