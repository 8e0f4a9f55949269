"""transformers' side of a check: a checkpoint as transformers itself reads it. Needs the extra `torch`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from jax_simcas.checkpoints.repository import BIN_INDEX, HUB_BIN, SAFETENSORS, SAFETENSORS_INDEX
from jax_simcas.common.errors import UserError, first_of, kind_and_line
from jax_simcas.run import torch_model
from jax_simcas.run.check_reading import Framed, Given, Reading
from jax_simcas.run.check_texts import Text

READABLE = (SAFETENSORS, SAFETENSORS_INDEX, HUB_BIN, BIN_INDEX)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Whatever transformers raises, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({kind_and_line(error)})") from None


def load(folder: Path) -> Any:
    """The model in float32, its attention as plain products, in which every family's rules are whole.

    Raises:
      UserError: weights that transformers cannot read, or not all of them.
    """
    if not any((folder / name).is_file() for name in READABLE):
        raise UserError(
            f"{folder}: transformers reads {SAFETENSORS} or {HUB_BIN}, which it has not; give the model that it was "
            "made of as --reference, or check what `python -m jax_simcas.convert` makes of it (--to=hf)"
        )
    logging.disable_progress_bar()
    with explained(f"{folder}: transformers cannot read it"):
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=False,
            weights_only=True,
            local_files_only=True,
            output_loading_info=True,
        )
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"{folder}: transformers finds no {first_of(missing)} in the weights, and would draw them")
    # `dtype` does not reach a part whose own config names another, as T5Gemma 2's encoder (transformers 5.24).
    return model.float().eval()


class Reference:
    """The model in `folder`, and its tokenizer; where that cannot be loaded, `tokenizer_problem` tells why."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._model = folder, load(folder)
        self._tokenizer: Any = None
        self.tokenizer_problem = ""
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # the libraries raise anything
            self.tokenizer_problem = kind_and_line(error)

    def frame(self, text: Text) -> Framed:
        """The tokens of the text and of its target."""
        assert self._tokenizer is not None
        document = self._tokenizer(text.document)["input_ids"]
        made = self._tokenizer(text_target=text.target, return_special_tokens_mask=True)
        bare, target = not self._tokenizer.num_special_tokens_to_add(), made["input_ids"]
        if not bare and not (mask := made["special_tokens_mask"])[-1]:  # Gemma's: a target is content and an end
            content = [token for token, is_special in zip(target, mask, strict=True) if not is_special]
            target = [*content, self._tokenizer.eos_token_id]
        return Framed(tuple(document), tuple(target), bare=bare)

    @torch.no_grad()
    def read(self, given: Given, searches: Sequence[Mapping[str, Any]]) -> Reading:
        """Encodes, decodes, and generates once for each of `searches`, options of `generate`.

        One chunk without alignment is the model alone; else its states are those of `torch_model.encode`.
        """
        ids, mask = torch.tensor(given.ids, dtype=torch.long), torch.tensor(given.mask)
        labels = torch.tensor(given.labels, dtype=torch.long)[None]
        visible = ids[mask][None]
        if given.align is None:
            source: dict[str, Any] = {"attention_mask": torch.ones_like(visible)}
            out = self._run(input_ids=visible, labels=labels, **source)
            states = out.encoder_last_hidden_state[0]
        else:
            with explained(f"{self._folder}: transformers cannot encode several chunks"):
                hidden = torch_model.encode(self._model, ids, mask, torch_model.EXCHANGES[given.align])
            states = hidden[mask]
            read = torch.cat([hidden[:, 0].mean(0, keepdim=True), hidden[:, 1:][mask[:, 1:]]])
            source = torch_model.encoder_outputs(self._model, read)
            out = self._run(labels=labels, **source)
        source |= {"input_ids": visible, "use_cache": torch_model.can_cache(self._model)}
        with explained(f"{self._folder}: transformers cannot generate"):
            sequences = [self._model.generate(**source, **options)[0] for options in searches]
        return Reading(
            states.numpy(), out.logits[0].numpy(), float(out.loss), tuple(tuple(x.tolist()) for x in sequences)
        )

    def _run(self, labels: torch.Tensor, **source: Any) -> Any:
        # Without a mask, some families hide tokens that equal PAD.
        with explained(f"{self._folder}: transformers cannot run it"):
            return self._model(labels=labels, decoder_attention_mask=torch.ones_like(labels), use_cache=False, **source)

    @property
    def longest(self) -> int:
        """The most tokens that `generate` makes by the checkpoint's settings, the start token included."""
        config = self._model.generation_config
        new = config.max_new_tokens
        return new + 1 if new is not None else config.max_length or 0
