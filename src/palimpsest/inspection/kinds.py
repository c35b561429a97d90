"""What kind of layer a weight belongs to, by its qualified name."""

import re

CROSS = ("cross-attention K/V", "cross-attention Q/out")
TEXT = ("text encoder", "text embeddings")
SECOND_LINEAR = "feed-forward, second linear"
FEED_FORWARD = ("feed-forward, first linear", SECOND_LINEAR)

RULES = (
    (re.compile(r"text_encoder\..*embedding.*"), "text embeddings"),
    (re.compile(r"text_encoder\..*"), "text encoder"),
    (re.compile(r"vae\..*"), "autoencoder"),
    (re.compile(r".*norm.*"), "norms"),
    (re.compile(r".*\.attn2\.(to_[kv]|add_[kv]_proj)\..*"), CROSS[0]),
    (re.compile(r".*\.attn2\..*"), CROSS[1]),
    (re.compile(r".*\.(attn\d*|attentions?\.\d+)\.(to_|add_).*"), "self-attention"),
    (re.compile(r".*\.ff\w*\.net\.0\..*"), FEED_FORWARD[0]),
    (re.compile(r".*\.ff\w*\.net\.\d+\..*"), SECOND_LINEAR),
    (re.compile(r".*(proj_in|proj_out)\..*"), "block projections"),
    (re.compile(r".*(time_emb|emb_layers|class_embed|add_embedding|label_emb|time_embed).*"), "time embeddings"),
)
KINDS = (*dict.fromkeys(kind for _, kind in RULES), "convolutions", "other linears")
"""All kinds, in the order in which they are told."""


def kind_of(name: str, dimensions: int) -> str:
    """The kind of a weight with so many dimensions; what no rule names is a convolution from three dimensions on."""
    for rule, kind in RULES:
        if rule.fullmatch(name):
            return kind
    # A bias has no shape to tell by: it goes with its layer's name.
    return "convolutions" if dimensions > 2 or "conv" in name else "other linears"
