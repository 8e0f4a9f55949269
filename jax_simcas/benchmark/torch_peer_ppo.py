"""PPO of the PyTorch peer's selector: one document's experience, and the minibatches of an update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from jax_simcas.benchmark.torch_peer import Peer, Selected
from jax_simcas.method.ppo import PPOConfig
from jax_simcas.method.reward import HYPER_LENGTH, REWARD_SCALE


class Experience(NamedTuple):
    """What the policy did and got on one document of K chunks, N candidates each."""

    hidden: torch.Tensor  # [K, S, D]
    selected: Selected
    reward: torch.Tensor  # [K, N]
    value: torch.Tensor  # [K, N]
    advantage: torch.Tensor  # [K, N]
    returns: torch.Tensor  # [K, N]


@contextlib.contextmanager
def visible_attention(peer: Peer) -> Iterator[None]:
    """sdpa keeps its weights to itself, and the rewards need them."""
    usual = peer.backbone.config._attn_implementation
    peer.backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        peer.backbone.set_attn_implementation(usual)


def rewards(
    logits: torch.Tensor, attention: torch.Tensor, action: torch.Tensor, target_ids: torch.Tensor
) -> torch.Tensor:
    """[K, N]: R a_j / (1 - a_0) for a kept candidate; for a skipped one R over the length that counts."""
    log_prob = logits[:-1].float().log_softmax(-1).gather(1, target_ids[1:, None])
    total = REWARD_SCALE * log_prob.mean().exp()
    count = len(attention) - 1
    length = count if count > HYPER_LENGTH else max(action.numel(), HYPER_LENGTH)
    out = torch.full(action.shape, float(total / length))
    out[action] = total * attention[1:] / (1 - attention[0])
    return out


@torch.no_grad()
def experience(
    peer: Peer, ids: torch.Tensor, target_ids: torch.Tensor, config: PPOConfig, action: torch.Tensor | None = None
) -> Experience:
    """Encodes, selects (or takes the given draws), decodes, rewards, and weighs by generalised advantages."""
    hidden = peer.encode(ids)
    selected = peer.select(hidden, action)
    with visible_attention(peer):
        logits, attention = peer.logits_and_attention(selected.states, target_ids)
    reward = rewards(logits, attention, selected.action, target_ids)
    value = torch.stack([peer.value(hidden[k, 1:], selected.state[k]) for k in range(len(hidden))])
    advantage, later, next_value = torch.zeros_like(value), torch.zeros(value.shape[1]), torch.zeros(())
    for k in reversed(range(len(hidden))):
        delta = reward[k] + config.discount * next_value - value[k]
        advantage[k] = later = delta + config.discount * config.trace * later
        next_value = value[k].mean()
    return Experience(hidden, selected, reward, value, advantage, advantage + value)


def losses(peer: Peer, seen: Experience, chunk: int, tokens: torch.Tensor, config: PPOConfig) -> torch.Tensor:
    """[5]: policy, value, entropy, total and approximate KL of one minibatch."""
    candidates, state = seen.hidden[chunk, 1:][tokens].float(), seen.selected.state[chunk]
    log_probs = peer.actor(candidates, state).log_softmax(-1)
    taken = torch.where(seen.selected.action[chunk, tokens], log_probs[:, 1], log_probs[:, 0])
    log_ratio = taken - seen.selected.log_prob[chunk, tokens]
    ratio = log_ratio.exp()
    advantage = seen.advantage[chunk, tokens]
    if len(tokens) > 1:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    policy = -torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage).mean()
    old, goal, new = seen.value[chunk, tokens], seen.returns[chunk, tokens], peer.value(candidates, state)
    clipped = old + (new - old).clamp(-config.value_clip, config.value_clip)
    value = 0.5 * torch.maximum((new - goal) ** 2, (clipped - goal) ** 2).mean()
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    total = policy - config.entropy_weight * entropy + value
    return torch.stack([policy, value, entropy, total, (ratio - 1 - log_ratio).mean().detach()])


def torch_ppo_update(
    peer: Peer,
    optimizer: torch.optim.Optimizer,
    seen: Experience,
    token_orders: torch.Tensor,
    chunk_orders: torch.Tensor,
    config: PPOConfig,
) -> torch.Tensor:
    """Visits every minibatch of every epoch, until an epoch ends above the largest KL; [steps, 5] losses.

    Args:
      token_orders: [epochs, K, N]; chunk_orders: [epochs, rounds, K].
    """
    out = []
    for tokens, rounds in zip(token_orders, chunk_orders, strict=True):
        for number, chunks in enumerate(rounds):
            part = slice(number * config.minibatch_size, (number + 1) * config.minibatch_size)
            for chunk in chunks.tolist():
                optimizer.zero_grad(set_to_none=True)
                row = losses(peer, seen, chunk, tokens[chunk, part], config)
                row[3].backward()
                optimizer.step()
                out.append(row.detach())
        if out[-1][4] > config.max_kl:
            break
    return torch.stack(out)
