#!/usr/bin/env bash
# orbax: with `best_fn` and `max_to_keep`, the checkpoint that was just written is deleted.
#
# Expected: keeping the two best checkpoints keeps the latest one as well, from which a run resumes. Seen: while the
# figure gets worse, only the best ones stay; `latest_step` then names an early step, and training that resumes there
# repeats everything since. A `preservation_policy` that joins LatestN and BestN is needed.
. "$(dirname "${BASH_SOURCE[0]}")/packages.sh"
packages orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
check <<'PY'
import logging
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
options = ocp.CheckpointManagerOptions(max_to_keep=2, best_fn=lambda metrics: metrics["nll"], best_mode="min")
manager = ocp.CheckpointManager(Path("checkpoints").resolve(), options=options)
for step, nll in enumerate((1.0, 2.0, 3.0, 4.0)):
    manager.save(step, args=ocp.args.StandardSave({"w": np.full(8, step)}), metrics={"nll": nll})
manager.wait_until_finished()
print(f"saved 0 to 3; latest: expected 3, seen {manager.latest_step()} of {list(manager.all_steps())}")
assert list(manager.all_steps()) == [0, 1] and manager.latest_step() == 1
PY
