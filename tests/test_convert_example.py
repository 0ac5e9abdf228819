"""``examples/convert_digits.py`` runs, and draws a picture."""

import pytest
from matplotlib.image import imread
from programs import ROOT, outcome, start


@pytest.mark.slow
def test_convert_digits(tmp_path):
    out = tmp_path / "digits.png"
    process = start(ROOT / "examples" / "convert_digits.py", "--quick", "--out", out, cwd=tmp_path)
    status, printed, errors = outcome(process)
    assert status == 0, errors
    assert "9 modules converted, 6 kept, 0 left alone" in printed and "converted and tuned:" in printed
    pixels = imread(out)
    assert min(pixels.shape[:2]) > 800 and pixels[..., :3].std() > 0.05
