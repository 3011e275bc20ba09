"""Records what HF's pipelines answer, in the files `recorded/*.json` beside this one.

It needs what the library does not: in a virtual environment of its own, and with the folder
of BART's tokenizer,

    pip install torch==2.13.0 transformers==4.57.6
    PYTHONPATH=tests python tests/tasks/record.py ../shared/data/bart-tokenizer

Each file has the versions, the names and shapes of each model's weights, whose numbers
`recorded_models.py` makes, and the answers of its pipeline. `summarise_words` is what the
built-in model, which was trained, makes of words.
"""

import copy
import json
import pathlib
import sys
import warnings

import recorded_models
import torch
import transformers


TEXTS = [
    "A dog barks.",
    "The film was a delight from start to finish, and I would see it again.",
    "Le café  était fermé;\n\nnous avons mangé une crêpe 🥞 au lieu de ça.",
    "naïve",
    "  Prices rose by 3.5% (to $1,200) in the third quarter 👩‍👩‍👧 of 2021…  ",
    "word " * 60,
]
PAIRS = [
    ["A dog barks.", "An animal makes noise."],
    ["Nobody came.", "The hall was full, and people had to stand."],
]
LABELS = {"contradiction": 0, "neutral": 1, "entailment": 2}
CANDIDATES = ["politics", "food and drink", "animals", "cinéma", "economy"]

CLASSIFICATION = {
    "three_labels": {"id2label": {"0": "sad", "1": "glad", "2": "neither"}},
    "one_label": {"id2label": {"0": "toxic"}},
    "multi_label": {
        "problem_type": "multi_label_classification",
        "id2label": {"0": "news", "1": "sport"},
    },
    "regression": {"problem_type": "regression", "id2label": {"0": "stars", "1": "age"}},
}
ZERO_SHOT = {
    "mnli": {"id2label": {"0": "contradiction", "1": "neutral", "2": "entailment"}},
    "first": {"id2label": {"0": "ENTAILMENT", "1": "NEUTRAL", "2": "CONTRADICTION"}},
    "two": {"id2label": {"0": "entailment", "1": "not_entailment"}},
    "last_of_two": {"id2label": {"0": "not_entailment", "1": "entailment"}},
}
ZERO_SHOT_SETTINGS = [
    {},
    {"multi_label": True},
    {"candidate_labels": CANDIDATES[:1]},
    {"hypothesis_template": "Ce texte parle de {}!", "candidate_labels": CANDIDATES[1:4]},
]
MASKED = [
    "Paris is the <mask> of France.",
    "<mask> is  red",
    "Le <mask> était fermé; nous avons mangé une <mask> 🥞.",
    "A<mask>b <mask><mask> c",
]
MASKED_SETTINGS = [{}, {"top_k": 3}, {"targets": [" capital", " city", " café"]}]
LONG = (
    "The café in Zürich  opened in 1907 😀. It was founded by Élodie Müller,\nwho had come "
    "from Kraków with 3 suitcases, two cats 🐈🐈 and a recipe for crème brûlée.\n\n\t"
    "During the war it was a library. In 1951 her daughter Zoë made it a café again; "
    "naïve visitors asked for “pancakes”. Today it seats 45 people and one very old "
    "dog. The owners speak Français, Deutsch and a little 日本語. "
)
QUESTIONS = [
    ("Who founded the café?", LONG),
    ("When did it open?", LONG * 4),
    ("Where?", "In Zürich."),
    ("What is 😀?", "An emoji 😀😀 of joy — naïve, é  and\n\nplain"),
    ("How many people does it seat in all?", LONG + LONG[::-1][:200]),
]
QUESTION_SETTINGS = [
    {},
    {"top_k": 4},
    {"align_to_words": False, "top_k": 3},
    {"handle_impossible_answer": True, "top_k": 2},
    {"max_seq_len": 48, "doc_stride": 12, "max_answer_len": 4, "top_k": 3},
]
UNANSWERABLE = [("Where?", "In Zürich."), ("How old is the café?", LONG[:80])]
UNANSWERABLE_SETTINGS = [
    {"handle_impossible_answer": True, "top_k": 2},
    {
        "handle_impossible_answer": True,
        "top_k": 60,
        "max_seq_len": 32,
        "doc_stride": 8,
        "max_answer_len": 2,
    },
]
# The settings of the hub's bart-large-cnn, smaller, with other numbers in each place, so
# that the answers tell which of them count; and with an end that becomes likely.
IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
ENDING = {"exponential_decay_length_penalty": [8, 1.1], "no_repeat_ngram_size": 3}
OF_CNN = IDS | ENDING | {"num_beams": 4, "length_penalty": 2.0, "forced_bos_token_id": 0}
OF_TASK = {"early_stopping": True, "length_penalty": 0.5, "max_length": 30, "num_beams": 3}
SUMMARIES = {
    "nothing": {"config": {}},
    "old": {
        "config": OF_CNN
        | {"max_length": 24, "min_length": 12, "prefix": " "}
        | {"exponential_decay_length_penalty": [20, 1.2]}
        | {"task_specific_params": {"summarization": OF_TASK | {"min_length": 19}}},
    },
    "both": {
        "config": {"prefix": " ", "num_beams": 2, "max_length": 10, "min_length": 2}
        | {"task_specific_params": {"summarization": OF_TASK, "translation": {}}},
        "generation_config": OF_CNN | {"max_length": 26, "min_length": 9},
    },
    "prefix": {
        "config": {
            "prefix": " ",
            "task_specific_params": {
                "summarization": {"prefix": "summarize: ", "max_new_tokens": 21}
            },
        },
        "generation_config": IDS | ENDING,
    },
    "own_beams": {
        "config": {},
        "generation_config": IDS | ENDING | {"num_beams": 6, "max_length": 25},
    },
    "task_length": {
        "config": {"task_specific_params": {"summarization": {"max_length": 16}}},
        "generation_config": IDS | {"num_beams": 4},
    },
}
BUILTIN = pathlib.Path(__file__).parents[2] / "eqx_bart" / "g2p"
WORDS = ["transformer", "equinox", "colonel", "o'clock", "supercalifragilistic"]
WORD_SETTINGS = [{}, {"num_beams": 4}, {"num_beams": 3, "length_penalty": -2.0}]
# What is given to the pipeline, where its defaults override the checkpoint's own settings.
SUMMARY_SETTINGS = {"own_beams": {"num_beams": 6}, "task_length": {"max_new_tokens": 15}}


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    tokenizer = transformers.BartTokenizerFast.from_pretrained(sys.argv[1])
    classifier = "BartForSequenceClassification"
    for seed, (name, config) in enumerate(CLASSIFICATION.items()):
        case, pipe = pipeline("text-classification", classifier, config, seed, tokenizer)
        inputs = [*TEXTS, *({"text": a, "text_pair": b} for a, b in PAIRS)]
        case["texts"] = inputs
        case["answers"] = [pipe(x, top_k=None) for x in inputs]
        save(f"classify_{name}", case)
    for seed, (name, config) in enumerate(ZERO_SHOT.items(), 10):
        label2id = {v: int(k) for k, v in config["id2label"].items()}
        config = config | {"label2id": label2id}
        task = "zero-shot-classification"
        case, pipe = pipeline(task, classifier, config, seed, tokenizer)
        case["texts"], case["calls"] = TEXTS, []
        for settings in ZERO_SHOT_SETTINGS:
            settings = {"candidate_labels": CANDIDATES} | settings
            answers = [pipe(text, **settings) for text in TEXTS]
            case["calls"].append({"settings": settings, "answers": answers})
        save(f"zero_shot_{name}", case)
    case, pipe = pipeline("fill-mask", "BartForConditionalGeneration", {}, 20, tokenizer)
    case["texts"], case["calls"] = MASKED, []
    for settings in MASKED_SETTINGS:
        answers = [pipe(text, **settings) for text in MASKED]
        case["calls"].append({"settings": settings, "answers": answers})
    save("fill_mask", case)
    record_answers("answer", 30, QUESTIONS, QUESTION_SETTINGS, tokenizer)
    record_answers("no_answer", 42, UNANSWERABLE, UNANSWERABLE_SETTINGS, tokenizer)
    record_summaries(tokenizer)
    words = transformers.PreTrainedTokenizerFast.from_pretrained(BUILTIN)
    pipe = transformers.pipeline(
        "summarization", model=str(BUILTIN), tokenizer=words, device="cpu"
    )
    calls = [summaries(pipe, WORDS, settings) for settings in WORD_SETTINGS]
    save("summarise_words", {"texts": WORDS, "calls": calls})


def record_answers(name: str, seed: int, questions, settings, tokenizer) -> None:
    model = "BartForQuestionAnswering"
    case, pipe = pipeline("question-answering", model, {}, seed, tokenizer)
    case["questions"], case["calls"] = questions, []
    for one in settings:
        one = {"max_seq_len": 128} | one
        answers = [pipe(question=q, context=c, **one) for q, c in questions]
        case["calls"].append({"settings": one, "answers": answers})
    save(name, case)


def record_summaries(tokenizer) -> None:
    # Room for the 256 tokens that are made where no setting says otherwise.
    tokenizer.model_max_length = 300
    for seed, (name, given) in enumerate(SUMMARIES.items(), 40):
        given["config"] |= {"max_position_embeddings": tokenizer.model_max_length}
        model = "BartForConditionalGeneration"
        case, pipe = pipeline(
            "summarization", model, seed=seed, tokenizer=tokenizer, **given
        )
        case["texts"] = TEXTS[-1:] if name == "nothing" else [*TEXTS[:3], LONG * 4]
        case["calls"] = [summaries(pipe, case["texts"], SUMMARY_SETTINGS.get(name, {}))]
        if name == "old":
            settings = {"max_length": 22, "min_length": 13, "length_penalty": 0.5}
            case["calls"].append(summaries(pipe, case["texts"], settings))
        save(f"summarise_{name}", case)


def summaries(pipe, texts: list[str], settings: dict) -> dict:
    """What is to be recorded of a call."""
    answers = []
    for text in texts:
        (made,) = pipe(text, return_tensors=True, truncation=True, **settings)
        ids = made["summary_token_ids"]
        (answer,) = pipe.postprocess({"output_ids": ids[None, None]})
        answers.append(answer | {"summary_token_ids": ids.tolist()})
    return {"settings": settings, "answers": answers}


def pipeline(
    task: str,
    name: str,
    config: dict,
    seed: int,
    tokenizer,
    generation_config: dict | None = None,
):
    """What is to be recorded of a model, and its pipeline."""
    case = {"class": name, "config": config, "seed": seed}
    model_class = getattr(transformers, name)
    values = copy.deepcopy(recorded_models.config(case))  # pipelines change it
    model = model_class(transformers.BartConfig.from_dict(values)).eval()
    if generation_config is not None:
        case["generation_config"] = generation_config
        own = transformers.GenerationConfig.from_dict(generation_config)
        model.generation_config = own
    tensors = model.state_dict()
    with torch.no_grad():
        for key, value in tensors.items():
            array = recorded_models.tensor(key, tuple(value.shape), seed)
            value.copy_(torch.from_numpy(array))
    tied = ("embed_tokens.weight", "lm_head.weight")
    case["shapes"] = {k: list(v.shape) for k, v in tensors.items() if not k.endswith(tied)}
    pipe = transformers.pipeline(task, model=model, tokenizer=tokenizer, device="cpu")
    return case, pipe


def save(name: str, case: dict) -> None:
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    directory = pathlib.Path(__file__).parent / "recorded"
    directory.mkdir(exist_ok=True)
    text = json.dumps({"versions": versions} | case, ensure_ascii=False, indent=1)
    (directory / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
