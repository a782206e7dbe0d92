"""The page of a feature: every number against the stored activations, counted again in float64."""

import json
from itertools import pairwise

import numpy as np
import pytest
import zarr
from thresher.analysis.explorer.page import BadQuery, NotHere, Query
from thresher.analysis.explorer.pages.feature import view
from thresher.analysis.explorer.pages.feature_neighbours import nearest_by


def seen(run, feature, **values):
    return view(run, Query({"feature": feature}, values))


@pytest.fixture(scope="module")
def dense(run):
    """`(n_rows, d_sae)` float64: every activation; rows that were not encoded are 0."""
    indptr, index, value = run.features.rows(0, run.features.n_rows)
    found = np.zeros((run.features.n_rows, run.d_sae))
    found[np.repeat(np.arange(len(found)), np.diff(indptr)), index] = value
    return found


@pytest.fixture(scope="module")
def labels(run):
    return run.features.row_numbers("label", 0, run.features.n_rows).astype(int)


def test_the_numbers_of_every_feature_are_those_of_its_activations(run, dense, labels):
    n_rows = run.features.info.n_encoded
    n_active = (dense > 0).sum(axis=0)
    for feature in range(run.d_sae):
        n, f = seen(run, feature).numbers, dense[:, feature]
        top = np.sort(f[f > 0])[::-1][: n.k]
        assert (n.n_rows, n.n_active, n.n_pos) == (n_rows, n_active[feature], len(top))
        assert n.density == n_active[feature] / n_rows
        assert n.rank == 1 + sum(other > n_active[feature] for other in n_active.tolist())
        assert n.max == pytest.approx(f.max())
        if len(top):
            assert n.mean_top == pytest.approx(top.mean(), rel=1e-6)
            assert n.mean == pytest.approx(f[f > 0].mean(), rel=1e-6)
        else:
            assert np.isnan([n.mean_top, n.mean]).all()


def test_label_entropy_has_its_count_and_its_chance(run, dense, labels):
    checked = 0
    for feature in range(run.d_sae):
        n, f = seen(run, feature).numbers, dense[:, feature]
        # the lower row first among equals, as everywhere
        rows = [row for row in np.argsort(-f, kind="stable")[: n.k] if f[row] > 0 and labels[row] >= 0]
        assert n.n_labelled == len(rows)
        if len(rows) < n.min_labelled:
            assert np.isnan(n.label_entropy)
            continue
        weight = np.bincount(labels[rows], weights=f[rows])
        q = weight[weight > 0] / weight.sum()
        assert n.label_entropy == pytest.approx(-(q * np.log(q)).sum(), abs=1e-6)
        assert n.effective_n == pytest.approx(f[rows].sum() ** 2 / (f[rows] ** 2).sum(), rel=1e-5)
        assert n.by_chance.n_draws == 20
        assert 0 < n.by_chance.p <= 1
        checked += 1
    assert checked > run.d_sae // 2


def test_an_entropy_of_one_label_is_not_minus_zero(run, dense, labels):
    zero = [f for f in range(run.d_sae) if run.stored.statistics.label_entropy[f] == 0]
    assert zero
    assert json.dumps(seen(run, zero[0]).numbers.label_entropy) == "0.0"


def test_the_grid_holds_the_sixteen_largest_activations(run, dense, labels):
    found = seen(run, 2)
    rows = np.argsort(-dense[:, 2], kind="stable")[:16]
    assert [each.row for each in found.pictures["top"]] == rows.tolist()
    assert [each.value for each in found.pictures["top"]] == pytest.approx(dense[rows, 2])
    assert [each.label for each in found.pictures["top"]] == labels[rows].tolist()
    assert [each.name for each in found.pictures["top"]] == [run.label_name(label) for label in labels[rows]]


def test_the_tabs_hold_the_stored_samples(run, dense):
    group = zarr.open_group(str(run.path / "stats.zarr"), mode="r")
    for feature in (0, 5, 20):
        found = seen(run, feature).pictures
        assert list(found) == ["top", "q75", "q50", "q25", "random"]
        for i, name in enumerate(list(found)[1:], 1):
            rows = group["samples/row"][feature, i]
            assert [each.row for each in found[name]] == rows[rows >= 0].tolist()
            assert all(each.value == pytest.approx(dense[each.row, feature]) for each in found[name])
        middle = np.median(dense[dense[:, feature] > 0, feature])
        assert min(p.value for p in found["q50"]) <= middle <= max(p.value for p in found["q50"])


def test_the_address_says_which_tab_is_open(run, client):
    assert seen(run, 0, group="q25").group == "q25"
    with pytest.raises(BadQuery, match="group must be one of top"):
        seen(run, 0, group="q1")
    html = client.get("/f/0?group=q25").text
    assert html.count('aria-selected="true"') == 1
    assert f'href="/i/{seen(run, 0).pictures["q25"][0].row}"' in html


def test_the_histogram_counts_every_activation_once(run, dense):
    for feature in (0, 3, run.d_sae - 1):
        found = seen(run, feature).histogram
        f = dense[:, feature]
        edges = np.array(found.edges)
        assert found.counts == [((f >= low) & (f < high) & (f > 0)).sum() for low, high in pairwise(edges)]
        assert found.n_zero == run.features.info.n_encoded - (f > 0).sum()


def test_the_label_table_is_over_all_firing_rows(run, dense, labels):
    for feature in (0, 8, 30):
        table, f = seen(run, feature).labels, dense[:, feature]
        known = labels >= 0
        assert table.n_labelled == (known & (f > 0)).sum()
        total = f[known].sum()
        assert {each.label for each in table.rows} == set(labels[known & (f > 0)].tolist())
        for each in table.rows:
            of_label = labels == each.label
            assert each.name == run.label_name(each.label)
            assert each.share == pytest.approx(f[of_label].sum() / total)
            assert each.count == (f[of_label] > 0).sum()
            encoded = run.features.row_numbers("valid", 0, run.features.n_rows) > 0
            assert each.share_of_label == pytest.approx(each.count / (of_label & encoded).sum())
        shares = [each.share for each in table.rows]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)


def test_nearest_features_are_those_with_the_largest_cosines(run, made):
    for side, vectors in (("decoder", made.sae.W_dec), ("encoder", made.sae.W_enc.T)):
        unit = vectors.double().numpy()
        unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        cosine = unit @ unit[4]
        cosine[4] = -2
        found = nearest_by(run, 4, side)
        best = np.sort(cosine)[::-1][: len(found)]
        assert [each.cosine for each in found] == pytest.approx(best, abs=1e-5)
        assert [cosine[each.feature] for each in found] == pytest.approx(best, abs=1e-5)
        top = run.stored.statistics.top_row
        assert found[0].rows == top[found[0].feature, :4].tolist()


def test_partners_fire_on_the_same_rows(run, dense):
    fires = dense > 0
    n_rows = run.features.info.n_encoded
    for feature in (0, 9, 40):
        found = seen(run, feature).partners
        assert found
        assert [each.jaccard for each in found] == sorted((each.jaccard for each in found), reverse=True)
        for each in found:
            both = (fires[:, feature] & fires[:, each.feature]).sum()
            either = (fires[:, feature] | fires[:, each.feature]).sum()
            alone = fires[:, feature].sum() * fires[:, each.feature].sum()
            assert each.n_both == both
            assert each.jaccard == pytest.approx(both / either, rel=1e-6)
            assert each.pmi == pytest.approx(np.log(both * n_rows / alone), abs=1e-5)


def test_a_dead_feature_has_a_page_without_images(run, made, client):
    dead = int(made.dead[0])
    found = seen(run, dead)
    assert found.is_dead
    assert found.pictures["top"] == []
    assert found.labels.rows == []
    assert found.partners == []
    page = client.get(f"/f/{dead}")
    assert page.status_code == 200
    assert "there are no images to show" in page.text
    twin = client.get(f"/f/{dead}.json").json()
    assert twin["numbers"]["mean_top"] is None
    assert twin["numbers"]["n_active"] == 0


def test_badges_say_what_a_feature_is(run, made, client):
    uld = int(made.ultra_low[0])
    assert run.is_uld[uld]
    assert seen(run, uld).is_uld
    assert not seen(run, uld).is_dense
    assert ">ULD</span>" in client.get(f"/f/{uld}").text
    assert seen(run, 0).is_dense
    assert ">dense set</span>" in client.get("/f/0").text


def test_before_and_after_walk_round_the_browsed_features(run, made):
    shown = run.shown.tolist()
    assert (seen(run, shown[0]).previous, seen(run, shown[0]).next) == (shown[-1], shown[1])
    assert (seen(run, shown[-1]).previous, seen(run, shown[-1]).next) == (shown[-2], shown[0])
    dead = int(made.dead[-1])  # after every browsed one
    assert (seen(run, dead).previous, seen(run, dead).next) == (shown[-1], shown[0])


def test_the_last_feature_is_there_and_the_one_after_it_is_not(run, client):
    last = run.d_sae - 1
    assert client.get(f"/f/{last}").status_code == 200
    for path in (f"/f/{last + 1}", f"/f/{last + 1}.json", "/f/-1", "/f/x", f"/f/{10**30}"):
        assert client.get(path).status_code == 404, path
    with pytest.raises(NotHere, match=f"0 to {last}"):
        seen(run, last + 1)


def test_the_twin_holds_all_numbers_of_the_page(run, client):
    twin, found = client.get("/f/1.json").json(), seen(run, 1)
    assert twin["numbers"]["density"] == found.numbers.density
    assert [each["row"] for each in twin["pictures"]["top"]] == [each.row for each in found.pictures["top"]]
    assert len(twin["labels"]["rows"]) == len(found.labels.rows)
    assert len(twin["decoder"]) == len(found.decoder)
    assert twin["histogram"]["edges"][-1] is None  # infinite
    assert client.get("/f/1/labels.json").json() == twin["labels"]


def test_the_default_list_is_the_alive_features_outside_the_cluster(run, client, made):
    ids = client.get("/ids.json").json()["ids"]
    assert ids == sorted(set(range(run.d_sae)) - set(np.flatnonzero(run.is_uld | run.is_dead).tolist()))
    assert not set(ids) & set(made.dead.tolist())


def test_hostile_labels_stay_text(client):
    html = client.get("/f/0").text
    assert "&lt;script&gt;alert(1)" in html
    assert "<script>alert(1)" not in html
    assert "{{ 7 * 7 }}" in client.get("/f/4").text  # of a template that was not run
