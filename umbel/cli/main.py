"""The entry point: assembles the commands, and turns every failure into one sentence and an exit code."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

import click

from umbel.cli.console import err, say
from umbel.cli.lazy import LazyGroup
from umbel.errors import UmbelError

COMMANDS = {
    "demo": ("umbel.cli.demo", "Run the built-in example: 20 clients, 8 rounds, easy-VQA."),
    "run": ("umbel.cli.run", "Run federated fine-tuning under Flower's simulation, or resume a run."),
    "simulate": ("umbel.cli.simulate", "Run a scenario on hundreds of virtual devices, or on a Ray cluster."),
    "compare": ("umbel.cli.compare", "Write one page that compares runs: curves and a table."),
    "runs": ("umbel.cli.runs", "List the runs."),
    "report": ("umbel.cli.report", "Write a run's report.html again and say where it is."),
    "evaluate": ("umbel.cli.evaluate", "Measure a run's adapter on the task's evaluation sets."),
    "chat": ("umbel.cli.chat", "Ask a model, with or without an adapter, about images."),
    "predict": ("umbel.cli.predict", "Answer a whole file of questions; resumable."),
    "model": ("umbel.cli.model", "Show what a base is made of and what its quantization costs."),
    "benchmark": ("umbel.cli.benchmark", "Run a benchmark of this checkout."),
    "export": ("umbel.cli.export", "Copy a run's adapter to a folder that PEFT loads."),
    "config": ("umbel.cli.config", "Show every option with its default and meaning."),
    "base": ("umbel.cli.base", "Build the base models that umbel ships recipes for."),
    "zoo": ("umbel.cli.zoo", "Show the models that a name stands for: sizes, memory, licence, what is verified."),
    "strategies": ("umbel.cli.strategies", "Show the federated LoRA methods and what each can do."),
    "privacy": ("umbel.cli.privacy", "Plan a privacy budget, or see what was spent."),
    "audit": ("umbel.cli.audit", "Measure what leaks, beside what is claimed."),
    "metrics": ("umbel.cli.metrics", "Serve a coordinator's figures for Prometheus."),
    "preflight": ("umbel.cli.preflight", "Look whether this machine is fit to join a federation."),
    "bundle": ("umbel.cli.bundle", "Write or check an offline installation, or a bundle without code."),
    "backup": ("umbel.cli.backup", "Copy ledger, audit log and registry to one archive."),
    "restore": ("umbel.cli.restore", "Put a backup back; never lowers what was spent."),
    "site": ("umbel.cli.site", "A site's own agent: its policy, its budget, its log."),
    "provision": ("umbel.cli.provision", "Enrol, renew and revoke: certificates, node keys and the roster."),
    "release": ("umbel.cli.release", "Sign, serve, fetch and verify the adapters of finished runs."),
    "version": ("umbel.cli.version", "Show the versions of umbel and what it stands on."),
}
"""Name: module whose ``app`` is the command, and the help line. One line a command."""

INTERRUPTED = 130
"""Exit code after Ctrl-C: 128 + SIGINT, as shells have it."""


def assemble() -> click.Group:
    """The whole command, nothing of it imported yet."""
    return LazyGroup(
        COMMANDS,
        name="umbel",
        help="Federated, private LoRA fine-tuning of quantized vision-language models.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; never raises.

    Codes: 0 done; 2 wrong usage; ``exit_code`` of an UmbelError; 130 Ctrl-C; 1 a defect of umbel, whose
    traceback is shown when UMBEL_DEBUG is set. ``docs/exit-codes.md`` says how to resolve each.
    """
    try:
        code = assemble().main(
            args=None if arguments is None else list(arguments), prog_name="umbel", standalone_mode=False
        )
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        hint = f"try '{error.ctx.command_path} --help'" if isinstance(error, click.UsageError) and error.ctx else ""
        say(error.format_message().rstrip(".?") + (f": {hint}." if hint else "."))
        return error.exit_code
    except UmbelError as error:
        say(error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("Interrupted.")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("UMBEL_DEBUG"):
            err.print_exception()
        text = " ".join(str(error).split())
        say(f"umbel failed unexpectedly ({type(error).__name__}: {text}): set UMBEL_DEBUG=1 to see where.")
        return 1


def run() -> None:
    """The console script. Warnings that libraries address to developers stay out unless UMBEL_DEBUG is set."""
    if not os.environ.get("UMBEL_DEBUG"):
        for category in (FutureWarning, DeprecationWarning):
            warnings.simplefilter("ignore", category)
    sys.exit(main())
