"""A word-level tokenizer, made offline from a list of words."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<s>", "</s>", "<unk>", "<image>"


def word_tokenizer(words: Iterable[str], extra: Iterable[str] = (), **named: str) -> PreTrainedTokenizerFast:
    """A lower-casing tokenizer whose tokens are words and single punctuation marks.

    Args:
        words: the vocabulary, in any order and with repetitions; sorted, so the same set gives the same ids.
        extra: further special tokens, after ``<pad> <s> </s> <unk> <image>``, which have the ids 0 to 4.
        named: attributes by which a family's processor asks for some of them (``boi_token``, say).

    Returns:
        A fast tokenizer that adds nothing around the text; an unknown word becomes ``<unk>``.
    """
    from tokenizers import Tokenizer, normalizers, pre_tokenizers
    from tokenizers.models import WordLevel

    special = [PAD, BOS, EOS, UNKNOWN, IMAGE, *extra]
    ordered = special + sorted({word.lower() for word in words} - set(special))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(ordered)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        additional_special_tokens=[IMAGE, *extra],
        clean_up_tokenization_spaces=False,
        model_specific_special_tokens=named,
    )
