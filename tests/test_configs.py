"""The published settings, against the table that they were published in."""

import pytest
from helpers import read_config

# accumulate, warmup, max_lr, min..max new tokens, length penalty, seed. Source: method.md "Published settings"
PUBLISHED = {
    "arxiv": (8, 10_000, 1e-2, 50, 300, 5.0, 5555),
    "pubmed": (16, 10_000, 1e-2, 40, 400, 4.0, 555),
    "govreport": (8, 1_600, 4e-3, 50, 740, 2.0, 777),
    "summscreen": (8, 6_400, 8e-3, 50, 750, 4.0, 777),
    "multinews": (16, 6_400, 8e-3, 150, 400, 2.0, 777),
    "wcep": (8, 1_600, 4e-3, 15, 40, 2.0, 970913),
    "narrativeqa": (4, 1_600, 4e-3, 1, 20, 3.0, 777),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name):
    settings, doc = read_config(name)
    accumulate, warmup, rate, least, most, penalty, seed = PUBLISHED[name]
    optimizer, generation, simcas, loop = settings.optimizer, settings.generate, settings.simcas, settings.loop
    assert (optimizer.accumulate_step, optimizer.warmup, optimizer.max_lr) == (accumulate, warmup, rate)
    assert (optimizer.label_smoothing, optimizer.clip_norm, settings.data.batch_size) == (0.1, None, 1)
    more = (0, 0) if name == "narrativeqa" else (1, 2)
    assert (generation.min_length, generation.max_length) == (least + more[0], most + more[1])
    assert (generation.length_penalty, generation.num_beams, generation.no_repeat_ngram_size) == (penalty, 4, 3)
    assert generation.early_stopping is True
    assert (simcas.chunk_length, simcas.max_input_len, simcas.max_target_len) == (512, 16_384, 1_024)
    assert (loop.epochs, loop.seed, loop.selector_every) == (100, seed, 100 if name == "wcep" else 50)
    assert settings.pretrained == "facebook/bart-base" and "Published test result" in doc
    assert "Accelerator memory" in doc
