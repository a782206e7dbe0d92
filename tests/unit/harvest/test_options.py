import subprocess
import sys

import pytest
from thresher.harvest.options import HarvestOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; it is one of fp32, bf16, fp16"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"site": "mlp_out"}, "site is 'mlp_out'; it is one of resid_post"),
        ({"token": "patch"}, "token is 'patch'; it is one of cls"),
        ({"order": "sorted"}, "order is 'sorted'"),
        ({"batch_size": 0}, "batch_size is 0; it is at least 1"),
        ({"workers": -1}, "workers is -1"),
        ({"limit": 0}, "limit is 0"),
        ({"layer": ()}, "no layer is given"),
        ({"layer": (3, 3)}, "names a layer twice"),
    ],
)
def test_a_wrong_option_names_itself_its_value_and_what_it_may_be(changes, message):
    with pytest.raises(ValueError, match=message):
        HarvestOptions(**changes)


def test_the_defaults_are_the_posts_setting():
    options = HarvestOptions()
    assert (options.model, options.layer, options.site, options.token) == (
        "ViT-L-14-quickgelu",
        (22,),
        "resid_post",
        "cls",
    )


def test_options_import_neither_torch_nor_zarr():
    code = "import sys, thresher.harvest.options; print({'torch', 'zarr', 'dask', 'open_clip'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
