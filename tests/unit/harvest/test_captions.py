import torch
from thresher.harvest.captions import _tokenizer, embed_captions
from thresher.harvest.vision import load_clip
from torch.nn.functional import normalize


def test_captions_without_their_padding_have_the_embeddings_that_they_have_with_it() -> None:
    clip = load_clip("quickstart")
    captions = ["cat", "a photo of a red heart on a very long and winding road to nowhere", ""]
    whole = clip.model.positional_embedding.shape[0]
    with torch.no_grad():
        padded = normalize(clip.model.encode_text(_tokenizer(clip.source)(captions)), dim=-1)
    # float32: sums of other lengths round otherwise
    torch.testing.assert_close(embed_captions(clip, captions), padded, rtol=0, atol=2e-6)
    torch.testing.assert_close(embed_captions(clip, captions[:1]), padded[:1], rtol=0, atol=2e-6)
    assert len(clip.model.positional_embedding) == whole
    assert clip.model.attn_mask.shape == (whole, whole)
