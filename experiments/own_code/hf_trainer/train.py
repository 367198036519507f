"""Train a small Llama configuration with Hugging Face's Trainer.

python train.py --config=config-1.json --steps=50 --seed=0 --out=/tmp/out
"""

import argparse
import random
from pathlib import Path

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

from isoflop import trainer as isoflop

SEQ_LEN = 64
BATCH_SIZE = 8


class Isoflop(TrainerCallback):
    """Tells isoflop how training goes, and Trainer when isoflop wants it to stop."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            isoflop.report(step=state.global_step, loss=logs["loss"])

    def on_step_end(self, args, state, control, **kwargs):
        if isoflop.should_stop() and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


def make_rows(num_rows, seed):
    """Return rows of a walk over 128 tokens whose next step depends on the last two."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_rows):
        row = [rng.randrange(128), rng.randrange(128)]
        while len(row) < SEQ_LEN:
            row.append((row[-1] + row[-2] % 7 + rng.randrange(4)) % 128)
        rows.append({"input_ids": row, "labels": row})
    return rows


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--config", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.steps,
        seed=args.seed,
        per_device_train_batch_size=BATCH_SIZE,
        learning_rate=1e-2,
        warmup_steps=5,
        logging_steps=10,
        save_steps=50,
        save_total_limit=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.config))
    trainer = Trainer(
        model=model,
        args=settings,
        train_dataset=make_rows(2000, seed=1),
        eval_dataset=make_rows(64, seed=2),
        callbacks=[Isoflop()],
    )
    last = get_last_checkpoint(str(args.out)) if args.out.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    steps = trainer.state.global_step
    if steps < args.steps:
        isoflop.stop()
    isoflop.finish(
        loss=trainer.evaluate()["eval_loss"],
        tokens=steps * BATCH_SIZE * SEQ_LEN,
        n_params=model.num_parameters(),
    )


if __name__ == "__main__":
    main()
