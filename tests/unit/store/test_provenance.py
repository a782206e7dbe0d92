"""Which field of the provenance keeps two stores apart, and that the error names it."""

from dataclasses import fields, replace

import pytest
from thresher.store.errors import StoreError
from thresher.store.provenance import Provenance

SAME = Provenance(
    model="ViT-L-14-quickgelu",
    pretrained="openai",
    weights_sha256="0" * 64,
    quick_gelu=True,
    n_layers=24,
    width=1024,
    preprocessing={"size": 224, "mean": [0.48, 0.46, 0.41], "interpolation": "bicubic"},
    precision="fp32",
    dtype="float16",
    batch_size=64,
    image_source="a folder",
    source=["/data/images"],
    limit=None,
    n_images=1000,
    keys_sha256="1" * 64,
    row_order="random",
    seed=0,
    packages={"torch": "2.6"},
    precision_error=None,
)
OTHER = {
    **{"model": "ViT-L-14", "pretrained": "laion2b", "weights_sha256": "2" * 64, "quick_gelu": False, "n_layers": 12},
    **{"width": 768, "preprocessing": SAME.preprocessing | {"interpolation": "bilinear"}, "precision": "bf16"},
    **{"dtype": "float32", "batch_size": 32, "image_source": "tars", "source": ["/x"], "limit": 9, "n_images": 9},
    **{"keys_sha256": "3" * 64, "row_order": "source", "seed": 1, "packages": {}, "precision_error": {"mean": 1e-3}},
}
SPACE = {"weights_sha256", "quick_gelu", "width", "preprocessing"}
KIND = SPACE | {"precision", "dtype"}
FREE = {"packages", "image_source", "source", "limit", "precision_error"}  # of a harvest that goes on
CHECKS = {
    # one SAE reads both
    Provenance.require_same_space: SPACE,
    # both are parts of one store
    Provenance.require_same_kind: KIND,
    # bit for bit the same rows
    Provenance.require_same_rows: set(OTHER) - FREE,
}


def test_every_field_is_tried():
    assert set(OTHER) == {field.name for field in fields(Provenance)}
    assert all(getattr(SAME, name) != value for name, value in OTHER.items())


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", OTHER)
def test_a_field_that_decides_is_refused_by_name_and_others_are_not(check, name):
    other = replace(SAME, **{name: OTHER[name]})
    if name not in CHECKS[check]:
        check(SAME, other, "b.zarr does not fit")
        return
    with pytest.raises(StoreError) as error:
        check(SAME, other, "b.zarr does not fit")
    said = str(error.value)
    if name == "preprocessing":  # entry by entry
        assert said == ("b.zarr does not fit: preprocessing.interpolation is 'bicubic' there and 'bilinear' here.")
    else:
        assert said == f"b.zarr does not fit: {name} is {getattr(SAME, name)!r} there and {OTHER[name]!r} here."


def test_a_record_comes_back_as_it_was_and_one_of_other_fields_is_refused():
    assert Provenance.from_json(SAME.to_json()) == SAME
    for record in (SAME.to_json() | {"colour": 1}, {"model": "ViT-L-14"}):
        with pytest.raises(StoreError, match=r"differs in: (colour|batch_size)"):
            Provenance.from_json(record)
