"""Small tokenizers in the files of the Hugging Face Hub, trained here, with the control tokens of published ones."""

from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.captions import ACTIONS, SUBJECTS

SIZE = 300
WORDS = ["a red half on the left in film", "green is right", "blue and yellow", *SUBJECTS[:4], *ACTIONS]


def _trained(special: list[str], template: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=SIZE, special_tokens=special, unk_token="<unk>", show_progress=False)
    texts = [text.lower() if number % 2 else text for text in WORDS for number in range(4)]
    tokenizer.train_from_iterator(texts, trainer)
    named = [(token, special.index(token)) for token in special if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=named)
    return tokenizer


def write_siglip_tokenizer(folder: Path, side: str = "right") -> int:
    """Write one that has no START, like T5's and Gemma's: padding 0, END 1. Return how many tokens it has."""
    tokenizer = _trained(["<pad>", "</s>", "<unk>"], "$A </s>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", padding_side=side
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def write_xlm_tokenizer(folder: Path) -> int:
    """Write one with XLM-V's control tokens: START 0, padding 1, END 2. Return how many tokens it has."""
    tokenizer = _trained(["<s>", "<pad>", "</s>", "<unk>"], "<s> $A </s>")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return tokenizer.get_vocab_size()
