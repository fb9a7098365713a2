"""The training loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from tqdm import tqdm

from ..config import Config
from ..data.store import LoadedPairs
from ..errors import Interrupted
from ..models import Matcher
from .checkpoint import CheckpointError, read_checkpoint, save_weights
from .log import RunLog
from .step import TrainingStep


def rows_of_step(step: int, rank: int, world: int, batch_size: int, rows: int, seed: int) -> list[int]:
    """Rows of the list that one device trains on in one step: consecutive places of an endless sequence of
    permutations."""
    first = (step * world + rank) * batch_size
    order: dict[int, Tensor] = {}
    picked = []
    for place in range(first, first + batch_size):
        epoch, position = divmod(place, rows)
        if epoch not in order:
            order[epoch] = torch.randperm(rows, generator=_generator(seed, epoch, salt=1))
        picked.append(int(order[epoch][position]))
    return picked


def _generator(seed: int, number: int, salt: int) -> torch.Generator:
    """Random numbers as a function of the seed and a number: nothing of them has to be saved to resume exactly."""
    return torch.Generator().manual_seed((seed * 1_000_003 + number) * 257 + salt)


class _StopOnSignal:
    """Turns the first Ctrl-C (and SIGTERM) into a flag that is read between steps; a second one interrupts at once."""

    def __enter__(self) -> _StopOnSignal:
        self.stop = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame) -> None:
        self.stop = True
        signal.signal(number, self._before[number])

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def train(
    fabric: Fabric, matcher: Matcher, method: str, data: LoadedPairs, config: Config, folder: Path,
    validate: Callable[[], float] | None, resume: bool, selection: str = "none, last step",
) -> None:  # fmt: skip
    """Train ``matcher`` in place and leave weights.safetensors, checkpoint.pt, log.jsonl and tensorboard/ in
    ``folder``.

    The weights kept are those of the best ``validate()`` if it is given, else the last; ``matcher`` ends with the last.
    ``selection`` says in words what they are selected on, and is stored with them.
    A step is a function of (settings, step), so that a resumed run gives the same bits as one that was not interrupted.

    Raises: Interrupted after Ctrl-C, with the state saved. CheckpointError: checkpoint of another architecture.
    """
    optim, run = config.optim, config.run
    checkpoint, weights = folder / "checkpoint.pt", folder / "weights.safetensors"
    frozen = optim.lr_backbone == 0
    matcher.backbone.requires_grad_(not frozen)
    groups = [{"params": list(matcher.head.parameters()), "lr": optim.lr}]
    if not frozen:
        groups.append({"params": list(matcher.backbone.parameters()), "lr": optim.lr_backbone})
    optimizer = torch.optim.AdamW(groups, weight_decay=optim.weight_decay)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, optim.milestones, optim.gamma)
    module, optimizer = fabric.setup(TrainingStep(matcher, method, config.augment, config.semi), optimizer)

    start, best, judged = 0, -1.0, 0
    scaler = fabric.strategy.precision  # keeps the loss scale of 16-mixed
    if resume and checkpoint.exists():
        state = check_resumable(folder, config, method)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        scaler.load_state_dict(state["precision"])
        start, best, judged = state["step"], state["best"], state["judged"]

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
            "precision": scaler.state_dict(), "step": step, "best": best, "judged": judged,
            "settings": _identity(config, method),
        }  # fmt: skip
        if fabric.is_global_zero:
            torch.save(state, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)

    def keep_if_best(step: int) -> None:
        nonlocal best, judged
        judged = step
        score = validate() if validate is not None else best
        if validate is None or score > best:
            best = score
            if fabric.is_global_zero:
                save_weights(
                    weights,
                    matcher,
                    config.model,
                    {"method": method, "step": step, "validation": score, "selection": selection},
                )

    log = RunLog(folder, start) if fabric.is_global_zero else None
    bar = tqdm(total=optim.steps, initial=start, desc=method, unit="step", disable=not fabric.is_global_zero)
    with _StopOnSignal() as signals, bar:
        for step in range(start, optim.steps):
            module.train()
            if frozen:
                matcher.backbone.eval()
            rows = rows_of_step(step, fabric.global_rank, fabric.world_size, optim.batch_size, len(data), run.seed)
            batch = data.batch(rows).to(fabric.device)
            loss, values = module(batch, _generator(run.seed, step, salt=2 + fabric.global_rank))
            fabric.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            done = step + 1
            bar.update()
            if log is not None:
                log.add(values)
                if done % run.log_every == 0 or done == optim.steps:
                    row = log.write(done, {"lr": schedule.get_last_lr()[0]})
                    bar.set_postfix({k: f"{row[k]:.3f}" for k in ("loss_sup", "loss_unsup", "coverage") if k in row})
            if validate is not None and run.eval_every and done % run.eval_every == 0 and done < optim.steps:
                keep_if_best(done)
            if _any_stopped(fabric, signals, done % run.log_every == 0) and done < optim.steps:
                save(done)
                raise Interrupted(f"stopped after step {done} of {optim.steps}; state saved in {checkpoint}")
            if done % run.save_every == 0 and done < optim.steps:
                save(done)
    if judged < optim.steps:
        save(optim.steps)  # before the validation, which an interrupt may cut short
        keep_if_best(optim.steps)
        save(optim.steps)
    if log is not None:
        log.close()


def _any_stopped(fabric: Fabric, signals: _StopOnSignal, agree: bool) -> bool:
    """Whether to stop now. Several devices stop at the same step: they ask each other where ``agree``, else go on."""
    if fabric.world_size == 1:
        return signals.stop
    return agree and bool(fabric.all_reduce(torch.tensor(float(signals.stop), device=fabric.device), reduce_op="sum"))


def check_resumable(folder: Path, config: Config, method: str) -> dict:
    """The state in ``folder``; CheckpointError that names the first setting in which it differs from ``config``."""
    path = folder / "checkpoint.pt"
    state = read_checkpoint(path, config.model)
    stored, wanted = state["settings"], _identity(config, method)
    for section, values in wanted.items():
        if stored.get(section) == values:
            continue
        name, was, now = section, stored.get(section), values
        if isinstance(values, dict) and isinstance(was, dict):
            key = next(k for k in values if was.get(k) != values[k])
            name, was, now = f"{section}.{key}", was.get(key), values[key]
        raise CheckpointError(
            f"{path}: was written with other settings ({name} was {was!r}, is {now!r}); expected the same to resume "
            "exactly; use another run.out, or init_from to start from its weights"
        )
    return state


def _identity(config: Config, method: str) -> dict:
    """The settings that a resumed run must share with the one that wrote the checkpoint."""
    plain = config.as_dict()
    plain["data"].pop("root")  # the same data may have moved
    plain["optim"].pop("steps")  # a run may be prolonged
    kept = {name: plain[name] for name in ("data", "model", "augment", "semi", "optim", "init_from")}
    run = {name: plain["run"][name] for name in ("seed", "devices", "precision", "eval_every")}
    return kept | {"run": run, "method": method}
