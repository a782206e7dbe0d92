import copy
import math
from types import SimpleNamespace

import open_clip
import pytest
import torch
from thresher.harvest.sites import capture, site_width
from thresher.harvest.splice import splice
from thresher.harvest.vision import load_clip, load_tower
from thresher.store.format import SITES, Site
from torch.nn import functional as F

D, NEURONS, FEATURES = 32, 128, 48


class Linear:
    """Features are relu(x A), the reconstruction f B + c: all that splicing asks of an SAE."""

    def __init__(self, d_in, d_out=None, *, seed=0, dtype=torch.float64, is_transcoder=False):
        draw = torch.Generator().manual_seed(seed)
        d_out = d_out or d_in
        self.is_transcoder, self.d_in, self.d_out = is_transcoder, d_in, d_out
        self.A = (torch.randn(d_in, FEATURES, generator=draw) / math.sqrt(d_in)).to(dtype)
        self.B = (torch.randn(FEATURES, d_out, generator=draw) / math.sqrt(FEATURES)).to(dtype)
        self.c = torch.randn(d_out, generator=draw).to(dtype)

    def encode(self, x):
        return (x.to(self.A) @ self.A).relu()

    def decode(self, f, x=None):
        return f @ self.B + self.c

    def __call__(self, x):
        return self.decode(self.encode(x))


class Identity:
    is_transcoder = False

    def __init__(self, d):
        self.d_in = self.d_out = d

    def encode(self, x):
        return x

    def decode(self, f, x=None):
        return f.clone()


def forward(visual, images, changes):
    """open_clip's vision transformer by hand; `changes` of (layer, site) are applied to what passes there."""
    here = dict(changes)

    def at(layer, site, x):
        return here.pop((layer, site), lambda y: y)(x)

    def normal(x, ln):
        return F.layer_norm(x, (x.shape[-1],), ln.weight, ln.bias, ln.eps)

    w = visual.state_dict()
    x = F.conv2d(images, w["conv1.weight"], stride=visual.conv1.stride).flatten(2).transpose(1, 2)
    position = w["positional_embedding"]
    if "class_embedding" in w:
        x = torch.cat([w["class_embedding"].expand(len(x), 1, -1), x], dim=1)
    else:
        position = position[1:]
    x = normal(x + position, visual.ln_pre)
    for i, block in enumerate(visual.transformer.resblocks):
        x = at(i, "resid_pre", x)
        scale = [ls.gamma if hasattr(ls, "gamma") else 1.0 for ls in (block.ls_1, block.ls_2)]
        q, k, v = (normal(x, block.ln_1) @ block.attn.in_proj_weight.T + block.attn.in_proj_bias).chunk(3, dim=-1)
        heads = block.attn.num_heads
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v
        mixed = mixed.transpose(1, 2).flatten(-2)
        x = x + at(i, "attn_out", scale[0] * block.attn.out_proj(mixed))
        hidden = at(i, "mlp_act", block.mlp.gelu(block.mlp.c_fc(normal(x, block.ln_2))))
        x = x + at(i, "mlp_out", scale[1] * block.mlp.c_proj(hidden))
        x = at(i, "resid_post", x)
    assert not here
    return normal(x, visual.ln_post)[:, 0] @ w["proj"]


def on_tokens(token, change, n_class=1):
    """Apply a change of rows to some tokens of (n, t, d)."""
    tokens = {"cls": slice(0, 1), "patch": slice(n_class, None), "all": slice(None)}[token]

    def changed(x):
        out = x.clone()
        out[:, tokens] = change(x[:, tokens].reshape(-1, x.shape[-1])).reshape(len(x), -1, x.shape[-1])
        return out

    return changed


@pytest.fixture(scope="module")
def quickstart():
    """The embedded model in float64, and images for it."""
    return load_clip("quickstart").model.double(), images_of(64)


def images_of(size, n=3, seed=3):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def clip(tiny_model):
    return load_clip(str(tiny_model)).model.double()


def random_tower(class_token=True, layer_scale=0.5, seed=5):
    """A float64 vision transformer with random weights, layer scale and biases that are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = open_clip.transformer.VisionTransformer(
            image_size=32,
            patch_size=16,
            width=D,
            layers=3,
            heads=2,
            mlp_ratio=4,
            ls_init_value=layer_scale,
            output_dim=8,
        )
        for parameter in visual.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    if not class_token:
        visual.class_embedding = None

        def embeds(images):
            patches = visual.conv1(images).flatten(2).transpose(1, 2)
            return visual.ln_pre(patches + visual.positional_embedding[1:])

        visual._embeds = embeds
    return visual.double().eval()


@pytest.mark.parametrize("token", ["cls", "patch", "all"])
@pytest.mark.parametrize("site", SITES)
def test_the_embedded_model_computes_on_what_was_spliced_in_as_by_hand(quickstart, site, token):
    clip, images = quickstart
    place = Site(3, site, token)
    sae = Linear(site_width(clip.visual, place))
    expected = forward(clip.visual, images, {(3, site): on_tokens(token, sae)})
    with splice(clip, sae, place):
        got = clip.encode_image(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    # a CLS vector that is added after the last attention would change nothing else; here it does
    assert (got - clip.encode_image(images)).abs().max() > 1e-3


@pytest.mark.parametrize(("class_token", "token"), [(True, "cls"), (True, "all"), (False, "patch")])
@pytest.mark.parametrize("site", SITES)
def test_towers_with_layer_scale_and_without_a_class_token_are_spliced_as_by_hand(site, class_token, token):
    visual, images = random_tower(class_token), images_of(32)
    place = Site(1, site, token)
    sae = Linear(site_width(visual, place))
    changed = on_tokens(token, sae, n_class=int(class_token))
    expected = forward(visual, images, {(1, site): changed})
    with splice(visual, sae, place):
        torch.testing.assert_close(visual(images), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(visual(images), forward(visual, images, {}), rtol=0, atol=1e-10)


@pytest.mark.parametrize("site", SITES)
def test_a_sequence_first_tower_gives_the_same(site):
    visual, images = random_tower(), images_of(32)
    other = copy.deepcopy(visual)
    other.transformer = open_clip.transformer.Transformer(D, 3, 2, ls_init_value=0.5, batch_first=False).double().eval()
    other.transformer.load_state_dict(visual.transformer.state_dict())
    place = Site(1, site, "patch")
    sae = Linear(site_width(visual, place))
    with splice(visual, sae, place), splice(other, sae, place):
        torch.testing.assert_close(other(images), visual(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("token", ["cls", "patch", "all"])
@pytest.mark.parametrize("site", SITES)
def test_an_identity_in_place_of_the_activations_changes_nothing(clip, site, token):
    images, place = images_of(32), Site(1, site, token)
    before = clip.encode_image(images)
    with splice(clip, Identity(site_width(clip.visual, place)), place):
        assert torch.equal(clip.encode_image(images), before)


@pytest.mark.parametrize("token", ["cls", "all"])
def test_with_its_error_term_an_sae_changes_nothing_but_what_an_edit_does(clip, token):
    images, place, sae = images_of(32), Site(1, token=token), Linear(D)
    before = clip.encode_image(images)
    with splice(clip, sae, place, keep_error=True):
        torch.testing.assert_close(clip.encode_image(images), before, rtol=0, atol=1e-12)

    def ablate(f):
        f[..., ::2] = 0  # where it lies, as users do
        return f

    def by_hand(x):
        return x - sae.encode(x)[:, ::2] @ sae.B[::2]

    expected = forward(clip.visual, images, {(1, "resid_post"): on_tokens(token, by_hand)})
    with splice(clip, sae, place, keep_error=True, edit=ablate):
        got = clip.encode_image(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    assert (got - before).abs().max() > 1e-6


def test_an_edit_sees_the_features_by_image_and_token(clip):
    images, seen = images_of(32), []

    def scale(f):
        seen.append(tuple(f.shape))
        return 3 * f

    sae = Linear(D)
    expected = forward(
        clip.visual,
        images,
        {(0, "resid_post"): on_tokens("patch", lambda x: 3 * sae.encode(x) @ sae.B + sae.c)},
    )
    with splice(clip, sae, Site(0, token="patch"), edit=scale):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)
    with splice(clip, sae, Site(0), edit=scale):
        clip.encode_image(images)
    assert seen == [(3, 4, FEATURES), (3, FEATURES)]


def test_an_edit_of_another_shape_is_named(clip):
    with (
        splice(clip, Linear(D), Site(0), edit=lambda f: f[:, :5]),
        pytest.raises(ValueError, match=r"edit gave \(3, 5\) for feature activations of \(3, 48\)"),
    ):
        clip.encode_image(images_of(32))


@pytest.mark.parametrize("token", ["cls", "patch", "all"])
def test_zero_and_mean_ablation_put_a_constant_there(clip, token):
    images, mean = images_of(32), torch.linspace(-1, 1, D).double()
    for settings, put in (({"replace": "zero"}, torch.zeros_like(mean)), ({"replace": "mean", "mean": mean}, mean)):
        expected = forward(
            clip.visual, images, {(1, "attn_out"): on_tokens(token, lambda x, put=put: put.expand(x.shape))}
        )
        with splice(clip, None, Site(1, "attn_out", token), **settings):
            torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)


def test_a_mean_may_be_given_for_each_token(clip):
    images, mean = images_of(32), torch.randn(5, D, generator=torch.Generator().manual_seed(0)).double()
    expected = forward(clip.visual, images, {(1, "resid_post"): lambda x: mean.expand(x.shape)})
    with splice(clip, None, "layers/1/resid_post/all", replace="mean", mean=mean):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("reads", "gives"), [("resid_pre", "resid_post"), ("mlp_act", "mlp_out")])
def test_a_transcoder_reads_one_site_and_replaces_another(clip, reads, gives):
    images, source, target = images_of(32), Site(0, reads, "patch"), Site(1, gives, "patch")
    coder = Linear(site_width(clip.visual, source), D, is_transcoder=True)
    seen = []
    forward(clip.visual, images, {(0, reads): lambda x: seen.append(x) or x})
    new = coder(seen[0][:, 1:].flatten(0, 1))
    expected = forward(clip.visual, images, {(1, gives): on_tokens("patch", lambda x: new)})
    with splice(clip, coder, source, target=target):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)
    before = clip.encode_image(images)
    with splice(clip, coder, source, target=target, keep_error=True):
        torch.testing.assert_close(clip.encode_image(images), before, rtol=0, atol=1e-12)


def test_splices_at_two_sites_nest_in_any_order(clip):
    images, first, second = images_of(32), Linear(D, seed=1), Linear(NEURONS, seed=2)
    expected = forward(
        clip.visual,
        images,
        {(0, "resid_post"): on_tokens("cls", first), (2, "mlp_act"): on_tokens("all", second)},
    )
    here, there = Site(0), Site(2, "mlp_act", "all")
    with splice(clip, first, here), splice(clip, second, there):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)
    with splice(clip, second, there), splice(clip, first, here):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)


def test_of_two_splices_at_one_site_the_inner_one_sees_what_the_outer_left(clip):
    images, outer, inner = images_of(32), Linear(D, seed=1), Linear(D, seed=2)
    expected = forward(clip.visual, images, {(0, "resid_post"): on_tokens("cls", lambda x: inner(outer(x)))})
    with splice(clip, outer, Site(0)), splice(clip, inner, Site(0)):
        torch.testing.assert_close(clip.encode_image(images), expected, rtol=0, atol=1e-10)


def test_no_hook_is_left_behind_even_after_an_exception(clip):
    images = images_of(32)
    before = clip.encode_image(images)
    with pytest.raises(RuntimeError, match="in the block"), splice(clip, Linear(D), Site(0)):  # noqa: PT012
        clip.encode_image(images)
        raise RuntimeError("in the block")
    with pytest.raises(ZeroDivisionError), splice(clip, Linear(D), Site(1), edit=lambda f: f * (1 // 0)):
        clip.encode_image(images)
    assert torch.equal(clip.encode_image(images), before)
    hooks = [h for module in clip.modules() for h in (*module._forward_hooks, *module._forward_pre_hooks)]
    assert hooks == []


def test_gradients_flow_through_the_sae_into_images_and_weights(clip):
    images, sae = images_of(32, n=1), Linear(D)
    sae.B.requires_grad_(True)

    def output(images):
        with splice(clip, sae, Site(1, token="all")):
            return clip.encode_image(images).sum()

    images.requires_grad_(True)
    by_image, by_weight = torch.autograd.grad(output(images), (images, sae.B))
    step = 1e-6
    for tensor, gradient, place in ((images, by_image, (0, 1, 7, 20)), (sae.B, by_weight, (3, 5))):
        with torch.no_grad():
            numbers = []
            for sign in (1, -1):
                tensor[place] += sign * step
                numbers.append(float(output(images)))
                tensor[place] -= sign * step
        numeric = (numbers[0] - numbers[1]) / (2 * step)
        assert float(gradient[place]) == pytest.approx(numeric, rel=1e-5, abs=1e-9)
        assert gradient.abs().max() > 0


def test_with_the_error_kept_gradients_flow_through_the_features_alone(clip):
    images, sae, held = images_of(32), Linear(D), []

    def hold(f):
        held.append(f.detach().requires_grad_(True))
        return held[-1]

    with splice(clip, sae, Site(2), keep_error=True, edit=hold):
        loss = clip.encode_image(images).sum()
    (by_feature,) = torch.autograd.grad(loss, held)
    # layer 2 is the last: loss = sum(ln_post(x) proj), whose gradient by x is asked of autograd by hand
    x = capture_cls(clip, images).requires_grad_(True)
    (by_x,) = torch.autograd.grad((clip.visual.ln_post(x) @ clip.visual.proj).sum(), x)
    torch.testing.assert_close(by_feature, by_x @ sae.B.T, rtol=0, atol=1e-10)


def capture_cls(clip, images):
    seen = []
    forward(clip.visual, images, {(2, "resid_post"): lambda x: seen.append(x[:, 0].detach()) or x})
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sae_keeps_its_own_type_and_the_model_its_own(tiny_model, dtype):
    clip = load_clip(str(tiny_model)).model.to(dtype)
    images, sae, seen = images_of(32).to(dtype), Linear(D), []
    with splice(clip, sae, Site(1), edit=lambda f: seen.append(f) or f):
        assert clip.encode_image(images).dtype == dtype
    assert seen[0].dtype == torch.float64


def test_autocast_does_not_round_the_sae(tiny_model):
    tower = load_tower(str(tiny_model), precision="bf16")
    images, sae, seen = images_of(32).float(), Linear(D, dtype=torch.float32), []
    with splice(tower, sae, Site(1), edit=lambda f: seen.append(f) or f), tower.arithmetic():
        tower.visual(images)
    x = capture(tower, images, [Site(1)])[Site(1)]
    assert torch.equal(seen[0], sae.encode(x))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_an_sae_on_another_device_is_spliced(tiny_model):
    clip, images = load_clip(str(tiny_model)).model.cuda(), images_of(32).float().cuda()
    with splice(clip, Linear(D, dtype=torch.float32), Site(1)):
        assert clip.encode_image(images).device.type == "cuda"


def test_capture_inside_reads_what_was_spliced_in(tiny_model):
    tower, images, sae = load_tower(str(tiny_model)), images_of(32).float(), Linear(D, dtype=torch.float32)
    x = capture(tower, images, [Site(1)])[Site(1)]
    with splice(tower, sae, Site(1)) as same:
        assert same is tower
        assert torch.equal(capture(tower, images, [Site(1)])[Site(1)], sae(x))


@pytest.mark.parametrize(
    ("site", "settings", "message"),
    [
        (Site(1, token="mean"), {}, "mean of the patches is no place in the tower"),
        (Site(3), {}, r"layer 3 is out of range: the tower has layers 0 to 2 \(0-based\)"),
        (Site(-1), {}, "layer -1 is out of range"),
        (Site(1, "resid_mid"), {}, "site 'resid_mid' is none of"),
        (Site(1, token="eot"), {}, "token 'eot' is none of"),
        ("layer 1", {}, "not the path of an activation array"),
        (Site(1, "mlp_act"), {}, "reads vectors of 32; those of layer 1 .* have 128"),
        (Site(1), {"replace": "noise"}, "replace 'noise' is none of sae, zero, mean"),
        (Site(1), {"mean": torch.zeros(D)}, "mean goes with replace='mean'"),
        (Site(1), {"replace": "mean"}, "which needs it"),
        (Site(1), {"replace": "zero", "mean": torch.zeros(D)}, "which needs it"),
        (Site(1), {"replace": "mean", "mean": torch.zeros(7)}, r"mean has shape \(7,\)"),
        (Site(1), {"replace": "zero", "keep_error": True}, "are an SAE's"),
        (Site(1), {"target": Site(2)}, "only a transcoder gives another site's"),
    ],
)
def test_what_does_not_fit_is_named(clip, site, settings, message):
    with pytest.raises(ValueError, match=message), splice(clip, Linear(D), site, **settings):
        pass


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (None, "name it as target"),
        (Site(0), "comes before"),
        (Site(1, "attn_out"), "comes before"),
        (Site(2, token="patch"), "are other tokens"),
    ],
)
def test_a_transcoder_needs_a_target_after_what_it_reads(clip, target, message):
    with (
        pytest.raises(ValueError, match=message),
        splice(clip, Linear(D, is_transcoder=True), Site(1, "mlp_out"), target=target),
    ):
        pass


def test_without_an_sae_there_must_be_an_ablation(clip):
    with pytest.raises(ValueError, match="no SAE to splice in"), splice(clip, None, Site(1)):
        pass


def test_a_tower_without_class_token_or_blocks_says_so():
    with pytest.raises(ValueError, match="has no class token"), splice(random_tower(False), Linear(D), Site(1)):
        pass
    other = SimpleNamespace(visual=torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="Linear has no residual blocks"), splice(other, Linear(D), Site(1)):
        pass
