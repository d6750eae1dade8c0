"""A model whose code comes with it."""

import json

import torch
from safetensors.torch import save_file

CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class OwnConfig(PreTrainedConfig):
    model_type = "own"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.body = torch.nn.Linear(4, 4)
        self.post_init()
    def _init_weights(self, module):
        pass
"""


def save(folder, code=CODE, **settings):
    """Write the config and the code of the model to ``folder``."""
    folder.mkdir(exist_ok=True)
    (folder / "own.py").write_text(code)
    config = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "dtype": "float32",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    }
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def save_weights(folder, *names):
    """Write weights of ones: the body's, and its bias."""
    weights = {"body.weight": torch.ones(4, 4), "body.bias": torch.ones(4)}
    kept = {name: weights[name] for name in names}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
