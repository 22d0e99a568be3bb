"""The command push: a run to the Hugging Face hub."""

from __future__ import annotations

from typing import Annotated

import typer

from clip_randlora.cli.console import loading, results, working


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    repository: Annotated[
        str, typer.Argument(metavar="ORG/NAME", help="Repository; created if it does not exist.")
    ],
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Of a new repository. Default: as the account says."
        ),
    ] = None,
) -> None:
    """Upload a run to the Hugging Face hub, with a model card.

    No image, no name of an image's file and no folder of this machine is uploaded. Others load the
    run as hf-hub:ORG/NAME. The token is that of `hf auth login` or HF_TOKEN.
    """
    with loading():
        from clip_randlora.runs.publish import push_run
    with working("uploading"):
        address = push_run(run, repository, private=private)
    results.print(f"Uploaded to {address}")
