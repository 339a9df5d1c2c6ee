"""The model card: ``adapter/README.md``, with the metadata that model hubs read."""

from __future__ import annotations

import json
from pathlib import Path

from coordinator.report.summary import Summary, summarize
from coordinator.report.text import number, percent, signed, size
from coordinator.run_folder import METRICS, read_config
from coordinator.tracking import CLIENTS, Metrics, read_metrics
from mllm.altered import described, is_altered
from strategies.registry import STRATEGIES
from umbel.config import RunConfig
from umbel.files import write_atomic


def write_model_card(folder: Path) -> Path:
    """Writes ``adapter/README.md`` of the run in ``folder``; returns its path.

    Raises:
        RunError: config or metrics cannot be read, or the card cannot be written.
    """
    card = render_model_card(
        folder.name, read_config(folder), read_metrics(folder / METRICS), composed=_is_composed(folder / "adapter")
    )
    path = folder / "adapter" / "README.md"
    write_atomic(path, card.encode())
    return path


def render_model_card(run_id: str, config: RunConfig, metrics: Metrics, *, composed: bool = False) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        run_id: the card's title.
        config: of the run.
        metrics: so far.
        composed: the base is of umbel's own model class, which must be registered before it is loaded.
    """
    summary = summarize(metrics)
    parts = [_front_matter(config, metrics), f"# {run_id}\n", _intro(config, metrics, summary)]
    parts += [
        _load(config, composed or config.model.name == "demo"),
        _figures(summary),
        _data(config, metrics),
        _privacy(metrics, summary),
    ]
    parts += [_configuration(config), _versions(metrics)]
    return "\n".join(parts)


def _front_matter(config: RunConfig, metrics: Metrics) -> str:
    tags = ["lora", "federated-learning", "vision-language", "umbel", config.strategy.name]
    if config.privacy.unit != "none":
        tags.append("differential-privacy")
    if config.secagg.enabled:
        tags.append("secure-aggregation")
    # JSON strings are YAML strings: a quote or a colon in a name cannot break the header.
    lines = ["---", f"base_model: {json.dumps(_base(config, metrics))}", "library_name: peft"]
    lines += ["pipeline_tag: image-text-to-text", "tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---\n"]
    return "\n".join(lines)


def _base(config: RunConfig, metrics: Metrics) -> str:
    return (metrics.start.base.name if metrics.start else "") or config.model.name


def _intro(config: RunConfig, metrics: Metrics, summary: Summary) -> str:
    base = metrics.start.base if metrics.start else None
    stored = base.quantization if base and base.quantization else config.model.quantization
    return (
        f"LoRA factors (rank {config.lora.rank}, alpha {config.lora.alpha:g}"
        f"{', rank-stabilised' if config.lora.rslora else ''}) on `{_base(config, metrics)}` (stored as {stored}), "
        f"fine-tuned by {config.federation.clients} clients in {summary.rounds} federated rounds with "
        f"`{config.strategy.name}`. No client's data left it.{_personal(config)}\n"
    )


def _personal(config: RunConfig) -> str:
    method = STRATEGIES.get(config.strategy.name)
    if method is None or not method.facts.personal:
        return ""
    return " Part of the model stays at each client and is not in this file: this is what the clients share."


def _is_composed(adapter: Path) -> bool:
    """Whether the adapter's base is of umbel's own class, as the PEFT configuration beside it says."""
    try:
        body = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
        return str((body.get("auto_mapping") or {}).get("parent_library", "")).startswith("mllm")
    except (OSError, ValueError, AttributeError):
        return False


def _load(config: RunConfig, composed: bool) -> str:
    # A base that umbel made needs its classes registered; any hub checkpoint loads with transformers alone.
    register = "import mllm  # registers the base's model class\n" if composed else ""
    note = (
        '\n`demo` is a base that umbel builds: `mllm.bases.locate("demo")` gives the directory to load.\n'
        if config.model.name == "demo"
        else ""
    )
    if is_altered(config.model):
        note += (
            f"\nThe base was altered for this run: {described(config.model)}. On the base as it is published the "
            "adapter answers otherwise; `umbel chat --adapter` and `umbel predict --adapter` alter the base in the "
            "same way.\n"
        )
    return (
        f"## How to load it\n\n```python\n{register}from peft import PeftModel\n"
        "from transformers import AutoModelForImageTextToText\n\n"
        "base = AutoModelForImageTextToText.from_pretrained(BASE)  # the base named above\n"
        'model = PeftModel.from_pretrained(base, "adapter")  # this directory\n'
        f"model.eval()\n```\n{note}"
    )


def _figures(summary: Summary) -> str:
    lines = ["## Figures\n", "| set | examples | base | federated | central | change, points |"]
    lines.append("|---|---:|---:|---:|---:|---:|")
    for row in summary.sets:
        known = row.federated or row.base
        cells = [percent(figures.accuracy if figures else None) for figures in (row.base, row.federated, row.central)]
        lines.append(f"| {row.name} | {known.count if known else 0} | {' | '.join(cells)} | {signed(row.change)} |")
    if summary.types:
        lines += ["", f"By question type, {summary.headline}:\n", "| question | examples | base | federated |"]
        lines.append("|---|---:|---:|---:|")
        lines += [f"| {t.name} | {t.count} | {percent(t.base)} | {percent(t.federated)} |" for t in summary.types]
    lines.append("\nAccuracy is the exact match of the whole answer, measured by the coordinator in the run.")
    if any(row.name == CLIENTS for row in summary.sets):
        lines.append(
            f"The set `{CLIENTS}` was measured at the clients: each took the adapter with what it keeps of its own to "
            "examples of its own that were held out of training, and only counts left it."
        )
    return "\n".join(lines) + "\n"


def _data(config: RunConfig, metrics: Metrics) -> str:
    task, federation = config.task, config.federation
    skew = f" (alpha {task.alpha:g})" if task.partition == "dirichlet" else ""
    cohort = "all clients" if federation.cohort == "all" else f"{federation.cohort}, {federation.cohort_size} clients"
    known = metrics.start.task if metrics.start else {}
    rows = [f"- task: {task.name}, divided by {task.partition}{skew} among {federation.clients} clients"]
    rows += [f"- {key}: {value}" for key, value in known.items() if isinstance(value, str | int) and key != "name"]
    rows.append(f"- rounds: {len(metrics.rounds)}, cohort: {cohort}, weights: {federation.weights}")
    rows.append(
        f"- local training: {config.train.amount} {config.train.unit} of {config.train.batch_size} examples, "
        f"{config.train.optimizer}, learning rate {config.train.learning_rate:g}"
    )
    up = sum(line.bytes_up for line in metrics.rounds)
    rows.append(f"- traffic, all clients: {size(sum(line.bytes_down for line in metrics.rounds))} down, {size(up)} up")
    return "## Data and training\n\n" + "\n".join(rows) + "\n"


def _privacy(metrics: Metrics, summary: Summary) -> str:
    spent = summary.privacy
    if spent is None:
        text = "No differential privacy: the adapter carries no guarantee about what can be learnt from it."
    else:
        text = f"epsilon {number(spent.epsilon)} at delta {number(spent.delta)}. {spent.statement}".strip()
    secagg = metrics.start.secagg if metrics.start else None
    if secagg is None:
        masked = "Secure aggregation was off: the coordinator could read each client's update."
    else:
        masked = f"Secure aggregation: {secagg.mode or 'on'}, threshold {secagg.threshold}."
    return f"## Privacy\n\n{text}\n\n{masked}\n"


def _configuration(config: RunConfig) -> str:
    import tomli_w

    nested = config.to_nested()
    del nested["run"]["directory"]  # where the results lay on one machine is of no use to a reader
    return f"## Configuration\n\n```toml\n{tomli_w.dumps(nested).strip()}\n```\n"


def _versions(metrics: Metrics) -> str:
    start = metrics.start
    versions = {"umbel": start.umbel, **start.versions} if start else {}
    return "## Versions\n\n" + "\n".join(f"- {name} {version}" for name, version in versions.items()) + "\n"
