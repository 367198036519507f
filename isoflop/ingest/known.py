"""Names that others give the columns of a table of runs.

Of W&B, Hugging Face's Trainer, nanochat, torchtitan, lm-eval, and of published tables. Names are
compared in small letters, without anything but letters and digits.
"""

from __future__ import annotations

import re

LOSS = (
    (
        *("evalloss", "valloss", "validationloss", "validloss", "testloss", "heldoutloss"),
        *("finalevalloss", "finalvalloss", "finalvalidationloss", "validationmetricsloss"),
        *("valbpb", "evalbpb", "validationbpb", "finalvalbpb", "valbitsperbyte"),
    ),
    (
        *("loss", "finalloss", "losslast", "crossentropy", "xent", "nll", "celoss"),
        "lossmetricsglobalavgloss",
    ),
    ("bpb", "bitsperbyte", "bitspertoken", "bpt"),
    ("valperplexity", "evalperplexity", "valppl", "evalppl", "perplexity", "ppl", "testppl"),
    ("trainloss", "trainingloss", "finaltrainloss", "trainlossfinal"),
)
"""Names of losses; those that come first measure more of what is meant. Two columns of one tier
that differ are for the user to choose from."""

ALL_LOSSES = {name for tier in LOSS for name in tier}

UNIT_OF_LOSS = (
    (re.compile(r"bpb|bitsperbyte"), "bits_per_byte"),
    (re.compile(r"bpt|bitspertoken"), "bits_per_token"),
    (re.compile(r"ppl|perplexity"), "perplexity"),
)

COUNTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "n_params": (
        (
            *("nparams", "numparams", "params", "parameters", "numparameters", "nparameters"),
            *("totalparams", "totalparameters", "paramcount", "parametercount", "modelparams"),
            *("numtotalparams", "ntotalparams", "modelnumparams", "modelparametercount"),
            "paramstotal",
        ),
        ("modelsize", "size", "n"),
    ),
    "n_tokens": (
        (
            *("ntokens", "tokens", "numtokens", "totaltokens", "traintokens", "trainingtokens"),
            *("numinputtokensseen", "tokensseen", "ntokensseen", "totaltokensseen"),
            *("numtraintokens", "numtrainingtokens", "throughputtotaltokens", "tokenstrained"),
            *("numtokensseen", "trainnuminputtokensseen"),
        ),
        ("d",),
    ),
    "budget_flops": (
        (
            *("budgetflops", "budget", "flopbudget", "flopsbudget", "computebudget"),
            *("isoflopbudget", "targetflops", "flopstarget", "nominalflops", "budgetc"),
        ),
    ),
    "n_active": (
        ("nactive", "activeparams", "numactiveparams", "nactiveparams", "activeparameters"),
    ),
    "n_nonembed": (
        (
            *("nnonembed", "nonembeddingparams", "numnonembeddingparams", "nonembedparams"),
            *("nnonembedding", "paramsnonembedding", "nonembeddingparameters", "nnonemb"),
        ),
    ),
    "steps": (
        (
            *("steps", "numiterations", "numsteps", "trainsteps", "totalsteps", "maxsteps"),
            *("nsteps", "iterations", "trainingsteps", "numtrainsteps"),
        ),
        ("step", "globalstep", "trainglobalstep"),
    ),
    "batch_size": (("batchsize", "globalbatchsize", "trainbatchsize"),),
    "seq_len": (
        (
            *("seqlen", "sequencelength", "seqlength", "contextlength", "blocksize"),
            *("maxseqlen", "maxsequencelength", "maxseqlength", "contextsize"),
        ),
    ),
    "n_experts": (("nexperts", "numexperts"),),
    "d_model": (("dmodel", "hiddensize", "modeldim", "nembd", "hiddendim"),),
    "n_layers": (("nlayers", "numlayers", "numhiddenlayers", "nlayer"),),
    "n_heads": (("nheads", "numheads", "numattentionheads", "nhead"),),
    "wall_s": (("walls", "runtime", "trainruntime", "traintimes"),),
    "loss_se": (("lossse", "lossstderr", "lossstandarderror"),),
}
"""Names of counts and other numbers above 0, tier after tier."""

SEED = (("seed", "randomseed", "trainseed", "trainingseed", "rngseed"),)
STATUS = (("status", "state", "runstate", "runstatus"),)
EXCLUDED = (("excludedreason", "excluded", "exclude"),)
RUN_ID = (("runid", "id"), ("name", "run", "runname", "displayname", "experimentname"))
ARCH = (
    ("arch", "architecture", "archname"),
    ("family", "variant", "modeltype", "modeltag", "modelname", "model", "tag", "tags", "group"),
)
STEPS_WITHIN = ("step", "steps", "globalstep", "trainglobalstep", "iter", "iteration", "trainstep")
"""Names of a column that counts the steps of a run, of which each row is one."""

FLOPS = re.compile(
    r"(?:throughput)?(?:(?P<total>total|train|training|totaltraining)(?P<unit>[kmgtpez]))?"
    r"(?:total|train|training|totaltraining)?"
    r"(?:flops?|flos)(?:used|achieved|spent|total|count)?|c|compute|totalcompute|traincompute"
)
"""Names of training FLOPs, perhaps with a unit; without "total", TFLOPs are those of a second."""

METRIC = re.compile(r"(?:results\.)?([\w-]+)\.(acc|acc_norm|exact_match|f1),none")
"""Columns of lm-eval's results: the task and its measure."""

PREFIXES = ("config", "summary", "summarymetrics", "model", "args", "hparams", "params")
"""Names of the levels that a tracker puts before a name."""


def plain(name: str) -> str:
    """Return a name in small letters, without anything but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def forms(name: str) -> tuple[str, ...]:
    """Return a plain name as it stands, and without what trackers put before it."""
    found = [plain(name)]
    parts = re.split(r"[./]", name)
    while len(parts) > 1 and plain(parts[0]) in PREFIXES:
        parts = parts[1:]
        found.append(plain(".".join(parts)))
    return tuple(found)
