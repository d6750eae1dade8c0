"""What a plan says that fits only with segments that grow."""

from tests.conftest import CONFIGS

LLAMA = CONFIGS / "llama-3.1-70b"


def test_what_pages_take_is_told_where_a_plan_rests_on_them(devctl):
    asked = ("plan", LLAMA, "--context-length", 32768, "--strategy", "optimal", "--devices")
    tight = devctl(*asked, "2xH100")
    assert tight.code == 0, tight.err
    assert tight.err.startswith("fits only with PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True")
    told = " ".join(tight.err.split())
    assert "note: with segments that grow it may need " in told
    assert " more than is left on cuda:0" in told
    roomy = devctl(*asked, "2xH200")
    assert roomy.err.startswith("fits, ")
    assert "segments that grow" not in roomy.err
