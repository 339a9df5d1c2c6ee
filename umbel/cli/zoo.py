"""``umbel zoo``: the models that a name in the configuration stands for."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from umbel.cli.console import out

app = typer.Typer(add_completion=False)

_MARKS = {True: "y", False: "n", None: "-"}
_ROOM_FOR_LICENCES = 110


@app.command()
def show(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
) -> None:
    """Show the models of the zoo: sizes, memory, licence, and what a benchmark has shown of each."""
    from mllm.zoo.figures import rows

    found = rows()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table, wide = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0)), out.width >= _ROOM_FOR_LICENCES
    table.add_column("model.name", style="cyan", no_wrap=True)
    for name in ("B", "tokens", "NF4", "sends", "train", "less"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("dp", "sec", "q", "ckpt", "lanes"):
        table.add_column(name, no_wrap=True)
    if wide:
        table.add_column("licence", overflow="fold")
    for row in found:
        seen = row["verified"]
        marks = [_MARKS[seen[key]] for key in ("dp", "secagg", "quantization", "checkpoint", "lanes")]
        table.add_row(row["name"], *_sizes(row), *marks, *([row["licence"]] if wide else []))
    out.print(table)
    out.print()
    out.print(
        "B: billions of parameters. tokens: an image. NF4: GB of the quantized base. sends: MB of a client's update a "
        "round, rank 8 on the language model. train: GB of a step on one image and 128 words in float32 over an NF4 "
        "base, and with gradient checkpointing (less). dp, sec (secure aggregation), q (NF4), ckpt (published layout), "
        "lanes: shown by `python -m benchmarks.zoo`; - is not measured. Choose with -c model.name=NAME; "
        "-c model.size=tiny tries it at test size. Licences stand in a terminal of 110 columns, and in --json. "
        "docs/models.md says more."
    )


def _sizes(row: dict[str, Any]) -> list[str]:
    def giga(key: str) -> str:
        return f"{row[key] / 1e9:.1f}" if key in row else ""

    adapter = f"{row['adapter_bytes'] / 1e6:.0f}" if "adapter_bytes" in row else ""
    return [
        f"{row['parameters'] / 1e9:.2f}" if "parameters" in row else "",
        str(row.get("tokens", "")),
        giga("quantized_bytes"),
        adapter,
        giga("training_bytes"),
        giga("checkpointed_bytes"),
    ]
