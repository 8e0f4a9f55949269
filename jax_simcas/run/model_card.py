"""The model card (README.md) of an export or an upload: data, settings, scores, and how to load the model.

It holds no path of the machine: files and folders of the user's own are "local".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.checkpoints.hub import Pretrained
from jax_simcas.common import tables
from jax_simcas.common.errors import UserError
from jax_simcas.evaluation import comparison, metrics, words
from jax_simcas.evaluation.bootstrap import Score
from jax_simcas.evaluation.files import SCORES, read_scores
from jax_simcas.run import config as config_lib
from jax_simcas.run.config import DataConfig, Settings
from jax_simcas.run.method_config import LONGEST_WARMUP
from jax_simcas.run.overrides import GENERATION, READING, shown_flags
from jax_simcas.run.provenance import LOCAL, data_in_words, hub_dataset, hub_model, languages

FOLDER = "FOLDER"  # what a card calls the place of a model that is in a local folder
FAMILIES = {"bart": "BART", "mbart": "mBART", "plbart": "PLBart", "mvp": "MVP", "pegasus": "PEGASUS", "led": "LED"}
FAMILIES |= {"t5": "T5", "mt5": "mT5", "umt5": "UMT5", "t5gemma": "T5Gemma", "t5gemma2": "T5Gemma 2"}
FAMILIES |= {"marian": "Marian", "m2m_100": "M2M100", "blenderbot": "Blenderbot", "blenderbot-small": "Blenderbot"}
TASKS = {"summarization": ("summarization", "Summarization"), "answers": ("question-answering", "Question answering")}
METRICS = {"exact_match": "exact_match", "f1": "f1"}  # by the names that the hub has; others are ROUGE or BERTScore
SIGNED = re.compile(r"\n<!-- Written by jax_simcas, which writes it anew unless this text is changed: (\w+) -->\s*$")
CARD = """
# {name}

{kind}{positions}, {origin} with jax_simcas, SimCAS in JAX ([paper](https://arxiv.org/abs/2308.13191)).
With that package it reads documents of any length, in chunks{selector}:

```python
import jax_simcas

model = jax_simcas.load("{address}")
print(model.summarize("A long document ...").summary)
```

```sh
python -m jax_simcas.summarize --model={address} article.txt
python -m jax_simcas.train --config=finetune --config.pretrained={address} --config.data.data_dir=DATA --workdir=RUN
```

## In transformers

{transformers}
{sections}"""
PLAINLY = """\
**transformers reads it plainly, without chunks and without selection**: as {kind}, inputs{reach}.
{unexpected}Both use the generation settings of `generation_config.json`.

```python
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({place})
model = AutoModelForSeq2SeqLM.from_pretrained({place})
```
"""
UNEXPECTED = "It reports parameters named `model.encoder.agent.*` as unexpected and ignores them.\n"
NOT_THERE = """\
transformers does not read this layout of the weights; `python -m jax_simcas.convert {address} exported --to hf` writes
the one that it reads.
"""


class Evaluation(NamedTuple):
    """The scores of one evaluation of a run. summary: the content of its scores.json."""

    name: str
    summary: Mapping[str, Any]

    @property
    def scores(self) -> dict[str, Score]:
        return {_without_path(name): comparison.as_score(fields) for name, fields in self.summary["scores"].items()}


def _without_path(name: str) -> str:
    """The name of a score; BERTScore's encoder may be in a folder of the user's own."""
    model, _, layer = name.removeprefix(metrics.BERTSCORE).rpartition("@")
    is_local = name.startswith(metrics.BERTSCORE) and hub_model(model) is None and "/" in model
    return f"{metrics.BERTSCORE}{LOCAL}@{layer}" if is_local else name


def evaluations_of(workdir: Path, step: int | None, is_best: bool) -> tuple[list[Evaluation], list[str]]:
    """The evaluations of a run's checkpoint, and notes on those that are left out.

    Args:
      is_best: whether it is the checkpoint that evaluations of earlier versions, which name none, are taken to be of.
    """
    found, notes = [], []
    for path in sorted(workdir.glob(f"evaluation/*/{SCORES}")):
        try:
            summary = read_scores(path.parent)
            evaluation = Evaluation(path.parent.name, summary)
            complete = bool(evaluation.scores) and {"documents", "split"} <= summary.keys()
        except (UserError, KeyError, TypeError, AttributeError):
            complete = False
        if not complete:
            notes.append(f"note: {path}: has no scores; left out of the model card")
        elif summary.get("step", step if is_best else None) != step:
            of = "another step" if summary.get("step") is None else f"step {summary['step']}"
            notes.append(f"note: {path}: of {of}, not of {step}; left out of the model card: evaluate this one")
        else:
            found.append(evaluation)
    return found, notes


# The card


class Subject(NamedTuple):
    """What a card is about.

    name: of the model. address: what loads it. run: its workdir, None for weights. source: what was converted.
    """

    found: Pretrained
    layout: str
    name: str
    address: str
    source: str
    run: Path | None = None
    evaluations: tuple[Evaluation, ...] = ()

    @property
    def settings(self) -> Settings | None:
        return config_lib.from_mapping(self.found.extra, "its settings") if self.found.extra else None

    @property
    def base_model(self) -> str | None:
        """A hub id; None for what was trained from scratch or from local weights."""
        settings = self.settings
        return hub_model(self.source if settings is None else settings.pretrained, self.run)


def write(subject: Subject) -> str:
    """The whole card."""
    from huggingface_hub import ModelCardData

    settings = subject.settings
    data = DataConfig() if settings is None else settings.data
    results = [result for evaluation in subject.evaluations for result in _results(subject, evaluation, data)]
    front = ModelCardData(
        language=languages(data),
        library_name=_library(subject.layout),
        pipeline_tag=TASKS[data.task][0],
        tags=["simcas", "jax", "long-documents", subject.found.config.family],
        base_model=subject.base_model,
        datasets=[found] if (found := hub_dataset(data.source, subject.run)) else None,
        model_name=subject.name if results else None,
        eval_results=results or None,
    )
    return _joined(front.to_yaml(), _signed(_body(subject)))


def _body(subject: Subject) -> str:
    found, settings = subject.found, subject.settings
    sections = [] if settings is None else [_training(subject, settings), _reading(settings)]
    sections += [_scores(subject.evaluations)] if subject.evaluations else []
    selector = ", of which its selector keeps the states that the decoder reads" if "selector" in found.params else ""
    return CARD.format(
        **_common(subject),
        name=subject.name,
        origin="written" if settings is None else "trained",
        selector=selector,
        transformers=_in_transformers(subject),
        sections="".join(f"\n{section}\n" for section in sections),
    )


def _common(subject: Subject) -> dict[str, str]:
    config = subject.found.config
    positions = config.to_hf().get("max_encoder_position_embeddings", config.positions)  # LED has fewer for targets
    return {
        "kind": FAMILIES.get(config.family, config.family),
        "positions": "" if positions is None else f" of {positions:,} positions",
        "reach": " of any length" if positions is None else f" of up to {positions:,} tokens",
        "address": subject.address,
    }


def _in_transformers(subject: Subject) -> str:
    """What transformers makes of the model."""
    unexpected = UNEXPECTED if "selector" in subject.found.params else ""
    template = PLAINLY if subject.layout == "hf" else NOT_THERE
    more = {"unexpected": unexpected, "place": _place(subject.address)}
    return template.format(**_common(subject), **more).rstrip("\n")


def _library(layout: str) -> str:
    return "transformers" if layout == "hf" else "jax_simcas"


def _place(address: str) -> str:
    """An address as `from_pretrained` of transformers takes it."""
    name, _, revision = address.partition("@")
    return f'"{name}"' + (f', revision="{revision}"' if revision else "")


def _listed(title: str, rows: Mapping[str, Any]) -> str:
    return f"## {title}\n\n" + "\n".join(f"- {name}: {value}" for name, value in rows.items())


def _training(subject: Subject, settings: Settings) -> str:
    data, update, loop = settings.data, settings.optimizer, settings.loop
    rows, step = subject.found.training.get("rows"), subject.found.training.get("step")
    counted = "" if rows is None else f" ({tables.plural(rows, 'row')})"
    length = tables.plural(loop.epochs, "epoch") if loop.epochs else f"{loop.steps:,} optimizer steps"
    local = "local weights" if settings.pretrained else "random weights"
    base = subject.base_model
    rate = f"peak_lr {update.peak_lr:g}" if update.max_lr is None else f"max_lr {update.max_lr:g}"
    warmup = (
        f"{update.warmup:,} steps" if update.warmup is not None else f"a tenth of the run (at most {LONGEST_WARMUP:,})"
    )
    every = "at every step" if loop.selector_every == 1 else f"every {loop.selector_every} steps"
    every += f" after step {loop.selector_start:,}" if loop.selector_start else ""
    learning = f"learns by PPO {every}, rate {update.selector_lr:g}"
    return _listed(
        "Training",
        {
            "data": data_in_words(data, subject.run),
            "splits": f"`{data.train_split}`{counted} to learn from, `{data.validation_split}` to validate",
            "started from": f"[{base}](https://huggingface.co/{base})" if base else local,
            "length": length if step is None else f"{length}; this checkpoint is of step {step:,}",
            "batch": f"{tables.plural(data.batch_size * update.accumulate_step, 'document')} per optimizer step",
            "optimizer": f"`{update.algorithm}`, schedule `{update.schedule}`, {rate}, warmup {warmup}, "
            f"label smoothing {update.label_smoothing:g}",
            "selector": learning if loop.selector_every else "does not learn",
            "seed": loop.seed,
        },
    )


def _reading(settings: Settings) -> str:
    simcas = settings.simcas
    budget = "" if simcas.budget is None else f", budget {simcas.budget:,}"
    capacity = "all that is selected" if simcas.capacity is None else f"{simcas.capacity:,}"
    return _listed(
        "Method",
        {
            "chunks": f"{simcas.chunk_length:,} tokens (`{simcas.chunking}`), inputs of up to "
            f"{simcas.max_input_len:,} tokens",
            "alignment": f"`{simcas.align}`",
            "policy": f"`{simcas.policy}`{budget}",
            "capacity of the decoder": capacity,
        },
    )


def _scores(evaluations: tuple[Evaluation, ...]) -> str:
    """A table for each evaluation, with 95 % intervals and the lead baseline."""
    return "## Scores\n\n" + "\n\n".join("\n".join(_evaluation(evaluation)) for evaluation in evaluations)


def _words(evaluation: Evaluation) -> words.Words:
    try:
        return words.named(evaluation.summary.get("rouge_tokenizer", metrics.STANDARD.name))
    except ValueError:
        return metrics.STANDARD


def _flags(evaluation: Evaluation) -> str:
    """The flags that changed what the model reads or writes, without those that may name a folder of the user."""
    flags = evaluation.summary.get("flags", {})
    return shown_flags({flag: flags[flag] for flag in flags if flag in (*READING, *GENERATION, "--limit")})


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    summary, counted = evaluation.summary, _words(evaluation)
    lead = {name: comparison.as_score(fields) for name, fields in summary.get("lead", {}).items()}
    rows = [
        {"score": metrics.labelled(name, counted), "model": score, "lead": lead.get(name)}
        for name, score in evaluation.scores.items()
        if not name.startswith(metrics.AUTHORS)
    ]
    policy = f", policy `{summary['policy']}`" if summary.get("policy") else ""
    flags = f", `{flags}`" if (flags := _flags(evaluation)) else ""
    share = summary.get("kept_share")
    kept = f", kept {100 * share:.1f} % of the candidates" if share else ""
    yield (
        f"`{evaluation.name}`: {tables.plural(summary['documents'], 'document')} of `{summary['split']}`{policy}{flags}"
        f"{kept}; means, with their 95 % bootstrap intervals; lead: the first words of the document. Rouge tokenizer: "
        f"{counted.name}."
    )
    yield ""
    yield tables.markdown_table(rows, ["score", "model", "lead"])
    yield from (f"\n{warning}" for warning in summary.get("score_warnings", ()))


def _results(subject: Subject, evaluation: Evaluation, data: DataConfig) -> Iterator[Any]:
    """The scores as the hub's model-index has them."""
    from huggingface_hub import EvalResult

    kind, title = TASKS[data.task]
    dataset = hub_dataset(data.source, subject.run)
    for name, score in evaluation.scores.items():
        if name.startswith(metrics.AUTHORS) or math.isnan(score.mean):
            continue
        interval = {} if math.isnan(score.low) else {"low": round(score.low, 4), "high": round(score.high, 4)}
        yield EvalResult(
            task_type=kind,
            task_name=title,
            dataset_type=dataset or LOCAL,
            dataset_name=dataset or re.sub(r"\[(.*?)\]\(.*?\)", r"\1", data_in_words(data, subject.run)),
            dataset_split=str(evaluation.summary["split"]),
            metric_type=METRICS.get(name, "bertscore" if name.startswith(metrics.BERTSCORE) else "rouge"),
            metric_name=metrics.measure_of(name).title,
            metric_value=round(score.mean, 4),
            metric_args={
                "evaluation": evaluation.name,
                "documents": score.count,
                "interval": 0.95,
                **interval,
                "rouge_tokenizer": _words(evaluation).name,
                **({"flags": flags} if (flags := _flags(evaluation)) else {}),
            },
        )


# A card that is there already


def _joined(front: str, body: str) -> str:
    return f"---\n{front}\n---\n{body}"


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]


def _signed(body: str) -> str:
    written = "Written by jax_simcas, which writes it anew unless this text is changed"
    return f"{body}\n<!-- {written}: {_digest(body)} -->\n"


def _parsed(card: str) -> Any:
    """As the hub reads it; None for a card with fields that cannot be read."""
    from huggingface_hub import ModelCard

    try:
        return ModelCard(card.replace("\r\n", "\n"), ignore_metadata_errors=True)
    except Exception:  # whatever YAML's parser raises
        return None


def is_renewable(card: str) -> bool:
    """Whether the text below the fields is as it was written here, or there is none."""
    if not card.strip():
        return True
    parsed = _parsed(card)
    if parsed is None:
        return False
    signature = SIGNED.search(parsed.text)
    return not parsed.text.strip() or bool(signature and signature[1] == _digest(parsed.text[: signature.start()]))


def renewed(old: str, new: str) -> str:
    """The new card, with the fields of the old one that it lacks, such as a license, and the tags of both."""
    if not old.strip():
        return new
    before, after = _parsed(old).data.to_dict(), _parsed(new)
    tags, fields = before.pop("tags", None) or [], before.keys() - {*after.data.to_dict(), "model-index"}
    after.data.tags = [*after.data.tags, *(tag for tag in tags if tag not in after.data.tags)]
    for name in sorted(fields):
        after.data[name] = before[name]
    return _joined(after.data.to_yaml(), after.text)


def readdressed(card: str, subject: Subject) -> str:
    """A card that was written here, of the same model under another name or in another layout."""
    parsed = _parsed(card)
    body = SIGNED.sub("", parsed.text)
    loads = re.search(r'jax_simcas\.load\("([^"]+)"\)', body)
    if loads is None:
        return card
    body = re.sub(rf"(?<![\w/.@-]){re.escape(loads[1])}(?![\w/@-])", lambda _: subject.address, body)
    section = lambda found: found[1] + _in_transformers(subject)
    body = re.sub(r"(?s)(\n## In transformers\n\n).*?(?=\n\n## |\s*\Z)", section, body, count=1)
    body = re.sub(r"(?m)^# .*$", lambda _: f"# {subject.name}", body, count=1)
    parsed.data.library_name = _library(subject.layout)
    if parsed.data.get("model_name"):
        parsed.data.model_name = subject.name
    return _joined(parsed.data.to_yaml(), _signed(body))
