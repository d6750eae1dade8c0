"""What is asked of torch's accelerators is there in the least torch that devctl takes."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
IN_2_6 = {"current_accelerator", "device_count", "is_available", "set_device_index", "synchronize"}
"""Of ``torch.accelerator``: what counts memory came with torch 2.9, and is of torch.cuda and torch.xpu before."""


def test_torchs_common_part_is_asked_what_its_first_release_has():
    assert '"torch>=2.6"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    used = {
        (path.name, name)
        for path in (ROOT / "devctl").rglob("*.py")
        for name in re.findall(r"^[^#\n]*\btorch\.accelerator\.(\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert used, "it is asked something"
    assert {name for _, name in used} <= IN_2_6, used
