"""A PyTorch peer: the same method on a model of transformers, to compare with. Needs the extra `torch`.

Written from the method's description as a PyTorch engineer would today: sdpa attention, chunks as one batch, alignment
by hooks on the encoder's layers, a key/value cache in generation; as options autocast to bfloat16, weights in bfloat16,
and torch.compile. It serves every family. On BART it is held to the arrays of the released code, as our own code is.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from jax_simcas.backbones.ops.naming import TORCH_SELECTOR
from jax_simcas.backbones.protocol import BackboneConfig
from jax_simcas.checkpoints.hub import to_state_dict
from jax_simcas.method.generate_config import DEFAULTS, FORCED, NOTHING, GenerateConfig
from jax_simcas.run import torch_model

CHUNKS_AT_ONCE = 8  # that the actor looks at together, where it need not wait for its own draws
IGNORED = -100  # cross_entropy's mark for targets that don't count


class TorchHead(nn.Module):
    """out(tanh(W3 tanh(W1 h + W2 s)))."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.dense_1 = nn.Linear(width, 2 * width)
        self.dense_2 = nn.Linear(width, 2 * width)
        self.dense_3 = nn.Linear(2 * width, 2 * width)
        self.out_proj = nn.Linear(2 * width, outputs)

    def forward(self, candidates: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        inner = torch.tanh(self.dense_1(candidates) + self.dense_2(state))
        return self.out_proj(torch.tanh(self.dense_3(inner)))


class Selected(NamedTuple):
    """What the policy did with one document of K chunks, N candidates each."""

    states: torch.Tensor  # [1 + n, D], the document's state first
    action: torch.Tensor  # [K, N]
    log_prob: torch.Tensor  # [K, N]
    state: torch.Tensor  # [K, D], seen before each chunk


class Peer(nn.Module):
    """An encoder-decoder, the actor and the critic, on one document at a time.

    Args:
      config: of any family.
      params: our parameter tree, selector included.
      align: mean, shift or none.
      autocast: compute in bfloat16 where torch's autocast finds it safe.
      static_cache: in generation. transformers compiles a step on it in greedy search and sampling, not with beams.
    """

    def __init__(
        self,
        config: BackboneConfig,
        params: Any,
        align: str = "mean",
        autocast: bool = False,
        static_cache: bool = False,
    ) -> None:
        super().__init__()
        weights = {k: torch.from_numpy(np.array(v)) for k, v in to_state_dict(params, config).items()}
        self.backbone = torch_model.made(config, {k: v for k, v in weights.items() if not k.startswith(TORCH_SELECTOR)})
        self.actor, self.critic = TorchHead(config.width, 2), TorchHead(config.width, 1)
        self.config, self.align, self.autocast, self.static_cache = config, align, autocast, static_cache
        for name, head in (("actor", self.actor), ("critic", self.critic)):
            own = f"{TORCH_SELECTOR}{name}."
            head.load_state_dict({k.removeprefix(own): v for k, v in weights.items() if k.startswith(own)})

    def compile_layers(self, decoder: bool) -> None:
        """torch.compile for each layer of the encoder, and of the decoder if asked: a stack shares one function.

        Hooks stay outside.
        """
        stacks = [self.backbone.get_encoder(), self.backbone.get_decoder()][: 1 + decoder]
        for layer in (layer for stack in stacks for layer in torch_model.layers_of(stack)):
            layer.forward = torch.compile(layer.forward, dynamic=False)

    @contextlib.contextmanager
    def _precision(self) -> Iterator[None]:
        with torch.autocast(self.backbone.device.type, torch.bfloat16, enabled=self.autocast):
            yield

    def encode(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[K, S] ids -> [K, S, D] states; PAD is attended to, as in the released code."""
        with self._precision():
            return torch_model.encode(self.backbone, input_ids, None, torch_model.EXCHANGES[self.align])

    def select(self, hidden: torch.Tensor, action: torch.Tensor | None = None) -> Selected:
        """Greedy, walking over the chunks, or with the given draws; an empty or only chunk keeps everything."""
        return self._greedy(hidden) if action is None else self._given(hidden, action)

    def _greedy(self, hidden: torch.Tensor) -> Selected:
        kept, actions, log_probs, states = [hidden[:, 0].float().mean(0, keepdim=True)], [], [], []
        total, count = kept[0][0].detach().clone(), 1
        for k in range(hidden.shape[0]):
            candidates = hidden[k, 1:]
            state = total / count
            with torch.no_grad():
                log_prob = self.actor(candidates.float(), state).log_softmax(-1)
            choice = log_prob[:, 1] > log_prob[:, 0]
            if hidden.shape[0] == 1 or not choice.any():
                choice = torch.ones_like(choice)
            kept.append(candidates[choice].float())
            total = total + kept[-1].detach().sum(0)
            count += len(kept[-1])
            actions.append(choice)
            log_probs.append(torch.where(choice, log_prob[:, 1], log_prob[:, 0]))
            states.append(state)
        return Selected(torch.cat(kept), torch.stack(actions), torch.stack(log_probs), torch.stack(states))

    def _given(self, hidden: torch.Tensor, action: torch.Tensor) -> Selected:
        """A few chunks at once: with the draws given, the means before each chunk come from cumulative sums."""
        document, candidates = hidden[:, 0].float().mean(0, keepdim=True), hidden[:, 1:]
        action = action | (torch.ones_like(action) if len(hidden) == 1 else ~action.any(1, keepdim=True))
        with torch.no_grad():
            parts = zip(candidates.split(CHUNKS_AT_ONCE), action.split(CHUNKS_AT_ONCE), strict=True)
            sums = torch.cat([torch.einsum("kn,knd->kd", a.float(), x.float()) for x, a in parts]).cumsum(0)
            counts = action.sum(1).cumsum(0)[:, None] + 1
            states = torch.cat([document, (document + sums)[:-1] / counts[:-1]])
            parts = zip(candidates.split(CHUNKS_AT_ONCE), states[:, None].split(CHUNKS_AT_ONCE), strict=True)
            log_prob = torch.cat([self.actor(x.float(), state).log_softmax(-1) for x, state in parts])
        log_prob = torch.where(action, log_prob[..., 1], log_prob[..., 0])
        return Selected(torch.cat([document, candidates[action].float()]), action, log_prob, states)

    def logits(self, selected: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
        """[T, V] teacher-forced logits."""
        with self._precision():
            return torch_model.decode(self.backbone, selected, target_ids).logits[0]

    def logits_and_attention(
        self, selected: torch.Tensor, target_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `logits`, and the mean cross-attention weight [1 + n] of every selected state; not with sdpa."""
        with self._precision():
            out = torch_model.decode(self.backbone, selected, target_ids, output_attentions=True)
        # Shares of the selected states alone: in T5Gemma 2 they are some of what one softmax spreads over.
        shares = (weights.float() / weights.float().sum(-1, keepdim=True) for weights in out.cross_attentions)
        attention = torch.stack([share.mean((0, 1, 2)) for share in shares]).mean(0)
        return out.logits[0], attention

    def value(self, candidates: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """The critic's value [N] of every candidate."""
        return self.critic(candidates.float(), state).squeeze(-1)

    def loss(self, input_ids: torch.Tensor, target_ids: torch.Tensor, action: torch.Tensor | None = None) -> Any:
        """Label-smoothed cross-entropy of one document without padding."""
        selected = self.select(self.encode(input_ids), action)
        logits = self.logits(selected.states, target_ids).float()
        gold = target_ids[1:].masked_fill(target_ids[1:] == self.config.pad_token_id, IGNORED)
        return nn.functional.cross_entropy(logits[:-1], gold, ignore_index=IGNORED, label_smoothing=0.1)

    @torch.no_grad()
    def generate(self, selected: torch.Tensor, config: GenerateConfig) -> torch.Tensor:
        """The best sequence, through transformers' own generation with its cache."""
        options: dict[str, Any] = dataclasses.asdict(config.filled(DEFAULTS))
        for name in FORCED:
            token = getattr(config, name)
            options[name] = getattr(self.config, name) if token is None else None if token == NOTHING else token
        ends = [token for token in self.config.eos_token_ids or (self.config.eos_token_id,) if token != NOTHING]
        options |= {"eos_token_id": ends or None, "decoder_start_token_id": self.config.decoder_start_token_id}
        if self.static_cache:
            options["cache_implementation"] = "static"
        with self._precision():
            given = torch_model.encoder_outputs(self.backbone, selected)
            options["use_cache"] = torch_model.can_cache(self.backbone)
            return self.backbone.generate(**given, do_sample=False, **options)[0]
