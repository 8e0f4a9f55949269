#!/usr/bin/env bash
# transformers: a T5 ignores the `feed_forward_proj` of its config.json where the file was saved with another one.
#
# Expected: feed_forward_proj of config.json, or of from_pretrained, decides the activation and whether layers are gated.
# Seen: save_pretrained also writes what follows from it, dense_act_fn and is_gated_act, and these two are read last.
# Whoever edits or overrides feed_forward_proj gets a config that shows the new value and a model with the old one. The
# weights of a gated model then have other names than those of the file, or, between two activations, nothing is said.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages transformers==5.24.0
check <<'PY'
import json, pathlib, tempfile

import transformers

for kind in (transformers.T5Config, transformers.MT5Config, transformers.UMT5Config):
    fresh = kind(feed_forward_proj="relu")
    assert (fresh.dense_act_fn, fresh.is_gated_act) == ("relu", False)
    with tempfile.TemporaryDirectory() as folder:
        fresh.save_pretrained(folder)
        overridden = kind.from_pretrained(folder, feed_forward_proj="silu")
        path = pathlib.Path(folder) / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"feed_forward_proj": "gated-gelu"}))
        edited = kind.from_pretrained(folder)
    seen = [(c.feed_forward_proj, c.dense_act_fn, c.is_gated_act) for c in (edited, overridden)]
    print(f"{kind.__name__}, transformers {transformers.__version__}: expected ('gated-gelu', 'gelu_new', True) and "
          f"('silu', 'silu', False), seen {seen}")
    assert seen == [("gated-gelu", "relu", False), ("silu", "relu", False)]
PY
