import logging

import click
import pytest
from click.testing import CliRunner
from thresher.command import edge


@pytest.mark.parametrize("flag", [None, "--json", "--quiet"])
def test_what_a_room_logs_is_a_warning_on_stderr_quiet_or_not(flag):
    @click.command()
    @click.option("--quiet", is_flag=True)
    @click.option("--json", "as_json", is_flag=True)
    @edge
    def run(quiet, as_json):
        logging.getLogger("thresher.store.outage").warning("s3://b/x could not be read\x1b yet: 100% gone")
        logging.getLogger("thresher.store.outage").info("unsaid")
        click.echo("{}")

    done = CliRunner().invoke(run, [flag] if flag else [])
    assert done.stdout == "{}\n"
    assert done.stderr == "warning: s3://b/x could not be read\\x1b yet: 100% gone\n"
    assert not logging.getLogger("thresher").handlers
