"""A page on which one plays with an exported model: numpy, onnxruntime and starlette; torch is never imported.

The page needs two things: a :class:`Scene`, which is what is known before anybody touches it, and somebody who answers
``decode``, ``encode`` and ``terms``. :func:`serve` answers from Python, on this machine alone; :func:`write_static`
writes a directory for any web host, where the visitor's browser answers.

Examples:
    >>> import tempfile, vaelib as vl
    >>> directory = tempfile.mkdtemp()
    >>> _ = vl.export_onnx(vl.conv_vae((1, 8, 8), latent_dim=3, hidden_channels=(4,)), directory)
    >>> scene = build_scene(directory, OnnxVAE(directory))
    >>> scene.facts["data"]["name"], scene.arrays["z"].shape
    ('samples of the model', (512, 3))
"""

from vaelib.explorer.scene import Data, Scene, build_scene
from vaelib.explorer.server import application, serve
from vaelib.explorer.static import write_static
from vaelib.runtime import OnnxVAE

__all__ = ["Data", "OnnxVAE", "Scene", "application", "build_scene", "serve", "write_static"]
