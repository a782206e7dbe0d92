import subprocess
import sys

import pytest
from thresher.harvest.options import HarvestOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "precision is 'int8'; it is one of fp32, bf16, fp16"),
        ({"dtype": "float64"}, "dtype is 'float64'"),
        ({"site": ("mlp_in",)}, "site is 'mlp_in'; it is one of resid_post, resid_pre, mlp_out, attn_out, mlp_act"),
        ({"site": ()}, "no site is given"),
        ({"site": ("mlp_out", "mlp_out")}, "names a site twice"),
        ({"token": "eot"}, "token is 'eot'; it is one of cls, patch, mean, all"),
        ({"append": True, "overwrite": True}, "append adds to the store that overwrite would replace"),
        ({"order": "sorted"}, "order is 'sorted'"),
        ({"batch_size": 0}, "batch_size is 0; it is at least 1"),
        ({"workers": -1}, "workers is -1"),
        ({"seed": 1 << 63}, "it is below 2\\^63"),
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
        ("resid_post",),
        "cls",
    )
    assert (options.append, options.profile, options.overwrite) == (False, False, False)


def test_layers_and_sites_are_repeated_on_the_command_line():
    import click
    from click.testing import CliRunner
    from thresher.command import given, options_of

    @click.command()
    @options_of(HarvestOptions)
    @click.pass_context
    def command(context, **_):
        options = HarvestOptions(**given(context, HarvestOptions))
        click.echo((options.layer, options.site, options.token))

    arguments = ["--layer", "3", "--layer", "4", "--site", "mlp_out", "--site", "attn_out", "--token", "patch"]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.output == "((3, 4), ('mlp_out', 'attn_out'), 'patch')\n"
    done = CliRunner().invoke(command, ["--site", "mlp_in"])
    assert done.exit_code == 2
    assert "'mlp_in' is not one of 'resid_post', 'resid_pre', 'mlp_out', 'attn_out', 'mlp_act'" in done.output


def test_options_import_neither_torch_nor_zarr():
    code = "import sys, thresher.harvest.options; print({'torch', 'zarr', 'dask', 'open_clip'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
