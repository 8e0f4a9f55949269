"""Arrays of every case of `jax_simcas.parity`, computed by the PyTorch peer on a model of any family.

    python tests/peer_arrays.py MODEL FOLDER

MODEL is a folder with small weights, or a model_type, of which a random one is made (tests/peer_models.py); FOLDER gets
them with a selector, manifest.json and an .npz per case. With few cases (--few) it is small enough to be kept. What the
arrays are: tests/data/parity/README.md.
"""

import argparse
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import torch
from peer_models import SETTINGS, TINY, model_of

from jax_simcas.backbones.families import replaced
from jax_simcas.benchmark.torch_peer import Peer
from jax_simcas.benchmark.torch_peer_ppo import experience, torch_ppo_update, visible_attention
from jax_simcas.checkpoints.hub import from_pretrained, save
from jax_simcas.method.generate_config import GenerateConfig
from jax_simcas.method.optimizers import inverse_sqrt
from jax_simcas.method.ppo import PPOConfig
from jax_simcas.method.reward import HYPER_LENGTH, REWARD_SCALE
from jax_simcas.run import torch_model
from jax_simcas.run.parity_cases import SELECTOR_LR

CHUNK, TARGET, MINIBATCH = 16, 12, 8
RATES = {"max_lr": 0.01, "warmup_steps": 100}
SEARCHES = (
    {"num_beams": 4, "length_penalty": 2.0, "no_repeat_ngram_size": 3, "min_length": 5, "max_length": 24,
     "early_stopping": True},
    {"num_beams": 1, "no_repeat_ngram_size": 3, "min_length": 1, "max_length": 20},
    {"num_beams": 3, "length_penalty": 0.6, "max_length": 30, "repetition_penalty": 1.3},
)  # fmt: skip
# (name, alignment, chunks, tokens of PAD, chunk of which nothing is drawn)
FORWARD = (
    ("mean", "mean", 4, 0, None),
    ("shift", "shift", 4, 0, None),
    ("mean_padded", "mean", 4, 5, 2),
    ("shift_padded", "shift", 3, 5, 1),
    ("one_chunk", "mean", 1, 0, None),
)


class Extent(NamedTuple):
    """How much is written: forward passes, chunks of a document in PPO and generation, in each step, searches."""

    forward: tuple = FORWARD
    aligns: tuple = ("mean", "shift")
    chunks: int = 4
    steps: tuple = (4, 2, 1, 4, 2, 1, 4, 2, 1, 4)
    searches: tuple = SEARCHES


ALL = Extent()
FEW = Extent(FORWARD[3:4], ("mean",), chunks=3, steps=(3, 3, 3), searches=SEARCHES[:1])


class Maker:
    """Draws documents for a model, and runs them through the peer."""

    def __init__(self, config, params, seed, extent):
        self.config, self.params, self.extent = config, params, extent
        self.rng = np.random.default_rng(seed)

    def peer(self, align):
        return Peer(self.config, self.params, align=align)

    def document(self, chunks, padding=0, empty=None):
        """ids [1, K, S], target [1, T] and draws [K, N]; each chunk has a token without content at both ends."""
        tokens, rng, most = self.config.tokens, self.rng, self.config.vocab_size
        special = {tokens.pad, tokens.eos, tokens.decoder_start, *([] if tokens.bos is None else [tokens.bos])}
        words = np.array([token for token in range(most) if token not in special])
        ids = rng.choice(words, (1, chunks, CHUNK))
        ids[..., 0], ids[..., -1] = tokens.eos if tokens.bos is None else tokens.bos, tokens.eos
        if padding:
            ids[0, -1, -1 - padding : -1] = tokens.pad
        target = np.concatenate([[tokens.decoder_start], rng.choice(words, TARGET - 2), [tokens.eos]])[None]
        draws = rng.random((chunks, CHUNK - 1)) < 0.4
        if empty is not None:
            draws[empty] = False
        return ids.astype(np.int64), target.astype(np.int64), draws.astype(np.int64)

    def forward(self, align, chunks, padding, empty):
        ids, target, draws = self.document(chunks, padding, empty)
        peer = self.peer(align).eval()
        tokens = torch.tensor(target[0])
        with torch.no_grad(), layer_inputs(peer) as states:
            hidden = peer.encode(torch.tensor(ids[0]))
        with torch.no_grad(), visible_attention(peer):
            selected = peer.select(hidden, torch.tensor(draws).bool())
            logits, attention = peer.logits_and_attention(selected.states, tokens)
            values = torch.stack([peer.value(hidden[k, 1:], selected.state[k]) for k in range(chunks)])
            loss = peer.loss(torch.tensor(ids[0]), tokens, torch.tensor(draws).bool())
        likelihood = logits[:-1].log_softmax(-1).gather(1, tokens[1:, None]).mean().exp()
        count = int(selected.action.sum())
        length = count if count > HYPER_LENGTH else max(selected.action.numel(), HYPER_LENGTH)
        total = REWARD_SCALE * likelihood
        made = {
            "input_ids": ids,
            "target_ids": target,
            "sampled_actions": draws,
            "actions": selected.action.numpy().astype(np.int64),
            "logits": logits[None],
            "selected": selected.states[None],
            "log_probs": selected.log_prob,
            "values": values,
            "mean_cross_attention": attention,
            "select_rewards": total * attention[1:] / (1 - attention[0]),
            "skip_reward": total / length,
            "selected_count": np.int64(count),
            "smoothed_loss": loss,
            "state_before_chunk": selected.state[:, None],
        }
        return made | {f"encoder_states_{i}": x[None] for i, x in enumerate(states)}

    def ppo(self, align):
        ids, target, draws = self.document(self.extent.chunks)
        peer, config = self.peer(align).eval(), PPOConfig(minibatch_size=MINIBATCH)
        draws = draws | ~draws.any(axis=1, keepdims=True)
        action = torch.tensor(draws).bool()
        seen = experience(peer, torch.tensor(ids[0]), torch.tensor(target[0]), config, action)
        epochs, rounds, (chunks, candidates) = config.epochs, -(-draws.shape[1] // MINIBATCH), draws.shape
        orders = lambda length, *shape: np.argsort(self.rng.random((*shape, length)))
        token_orders, chunk_orders = orders(candidates, epochs, chunks), orders(chunks, epochs, rounds)
        heads = {"actor": peer.actor, "critic": peer.critic}
        optimizer = torch.optim.Adam([p for head in heads.values() for p in head.parameters()], SELECTOR_LR)
        losses = torch_ppo_update(peer, optimizer, seen, torch.tensor(token_orders), torch.tensor(chunk_orders), config)
        made = {
            "input_ids": ids,
            "target_ids": target,
            "actions": draws,
            "rewards": seen.reward,
            "values": seen.value,
            "log_probs": seen.selected.log_prob,
            "advantages": seen.advantage,
            "returns": seen.returns,
            "token_orders": token_orders,
            "chunk_orders": chunk_orders.reshape(-1, chunks),
            "minibatch_size": np.int64(MINIBATCH),
            "losses": losses,
        }
        after = {f"{name}.{key}": p for name, head in heads.items() for key, p in head.state_dict().items()}
        return made | {f"after/model.encoder.agent.{name}": value for name, value in after.items()}

    def train(self, align):
        peer = self.peer(align).train()
        optimizer = torch.optim.Adam(peer.backbone.parameters(), lr=1.0)
        schedule = inverse_sqrt(*RATES.values())
        made, rates, losses = {}, [], []
        for step, chunks in enumerate(self.extent.steps):
            ids, target, draws = self.document(chunks)
            names = ("input_ids", "target_ids", "sampled_actions")
            made |= {f"step{step + 1}/{name}": x for name, x in zip(names, (ids, target, draws), strict=True)}
            rates.append(float(schedule(step)))
            optimizer.param_groups[0]["lr"] = rates[-1]
            optimizer.zero_grad()
            loss = peer.loss(torch.tensor(ids[0]), torch.tensor(target[0]), torch.tensor(draws).bool())
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        made |= {"learning_rates": np.array(rates), "losses": np.array(losses)}
        copies = {id(value): name for name, value in reversed(peer.backbone.state_dict(keep_vars=True).items())}
        return made | {f"after/{name}": peer.backbone.state_dict()[name] for name in copies.values()}

    def generate(self, align):
        peer, made = self.peer(align).eval(), {}
        for i, options in enumerate(self.extent.searches):
            ids, _, draws = self.document(1 if options["num_beams"] == 1 else self.extent.chunks)
            with torch.no_grad():
                selected = peer.select(peer.encode(torch.tensor(ids[0])), torch.tensor(draws).bool())
            sequence = peer.generate(selected.states, GenerateConfig(**options))
            made |= {f"{i}/input_ids": ids, f"{i}/sampled_actions": draws, f"{i}/sequences": sequence[None]}
        return made


@contextmanager
def layer_inputs(peer):
    """What every layer of the encoder is given, as it runs."""
    states = []
    layers = torch_model.layers_of(peer.backbone.get_encoder())
    handles = [layer.register_forward_pre_hook(lambda _, given: states.append(given[0])) for layer in layers]
    yield states
    for handle in handles:
        handle.remove()


def write(folder, config, params, seed=0, extent=ALL):
    """All cases of a model."""
    config = replaced(config, **dict.fromkeys(config.rates, 0.0))
    maker, folder = Maker(config, jax.device_get(params), seed, extent), Path(folder)
    save(folder, config, params)
    cases = {f"forward_{name}": ({"align": row[0]}, maker.forward(*row)) for name, *row in extent.forward}
    for align in extent.aligns:
        cases[f"ppo_{align}"] = {"align": align}, maker.ppo(align)
        cases[f"train_{align}"] = {"align": align, **RATES, "steps": len(extent.steps)}, maker.train(align)
        cases[f"generate_{align}"] = {"align": align, "settings": extent.searches}, maker.generate(align)
    for name, (_, arrays) in cases.items():
        plain = {key: x.detach().numpy() if isinstance(x, torch.Tensor) else x for key, x in arrays.items()}
        np.savez_compressed(folder / f"{name}.npz", **plain)
    manifest = {name: {"source": "peer", **settings} for name, (settings, _) in cases.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def write_of(source, folder, seed=0, extent=ALL):
    """All cases of the model in a folder, or of a tiny one of a model_type."""
    with tempfile.TemporaryDirectory() as made:
        if source in SETTINGS:
            model_of(source, seed, TINY).save_pretrained(made)
        loaded = from_pretrained(made if source in SETTINGS else source, jax.random.key(seed))
    write(folder, loaded.config, loaded.params, seed, extent)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder")
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write_of(given.model, given.folder, given.seed, FEW if given.few else ALL)


if __name__ == "__main__":
    main()
